#!/bin/sh
# All that is encrypted for a backup or a restore is encrypted here: $2 to the public key $1 of age, as the file $3. $2 is a file,
# a folder, which becomes a tar archive, or - for standard input. With "remove" as $4 the source is removed afterwards. A file
# $3 that could not be completed is removed, and the source kept. Backups were verified before.
set -eu
umask 077
if ! command -v age > /dev/null; then
    echo "age is not installed: run site.yml, which installs it on hosts, or on the control machine apt-get install age." >&2
    exit 69
fi
archive="$3.unencrypted"
trap 'status=$?; rm -f "$archive"; if [ $status != 0 ]; then rm -f "$3"; fi' EXIT
rm -f "$3"
if [ "$2" = - ]; then
    age --encrypt --recipient "$1" --output "$3"
elif [ -d "$2" ]; then
    tar --create --file "$archive" --directory "$(dirname "$2")" "$(basename "$2")"
    age --encrypt --recipient "$1" --output "$3" "$archive"
else
    age --encrypt --recipient "$1" --output "$3" "$2"
fi
if [ "${4:-}" = remove ]; then rm -r "$2"; fi
