#!/bin/bash
# Run on the control machine: encrypts the backup $1, whose identity is the file $2, to the public key $3 of a host as $4. Its
# plain text is never on a disk here, and the identity never leaves this machine. Without $3 the backup is only verified.
set -euo pipefail
umask 077
if ! command -v age > /dev/null; then
    echo "age is not installed on this machine: apt-get install age" >&2
    exit 69
fi
for file in "$1" "$2"; do
    if [ ! -f "$file" ]; then
        echo "$file does not exist: use -e backup=FILE -e identity=FILE, the file that age-keygen wrote." >&2
        exit 66
    fi
done
decrypted() { age --decrypt --identity "$1" "$2" || { echo "$2 is damaged, or $1 does not open it." >&2; return 65; }; }
if [ -n "${3:-}" ]; then decrypted "$2" "$1" | sh "$(dirname "$0")/encrypt.sh" "$3" - "$4"; else decrypted "$2" "$1" > /dev/null; fi
