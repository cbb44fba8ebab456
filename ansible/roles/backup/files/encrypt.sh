#!/bin/sh
# Run on a host: encrypts the backup $1 to the public key $2 as $1.age, and removes it. What is encrypted was verified before.
set -eu
umask 077
if ! command -v age > /dev/null; then
    echo "age is not installed on this host: run site.yml, which installs it." >&2
    exit 69
fi
rm -f "$1.age"
age --encrypt --recipient "$2" --output "$1.age" "$1"
rm "$1"
