#!/bin/sh
# Unpacks a backup into a temporary folder and compares every file with its digest.
set -eu
if [ ! -f "$1" ]; then
    echo "The backup $1 does not exist: use -e backup=FILE (a relative or an absolute path)." >&2
    exit 66
fi
folder=$(mktemp --directory --tmpdir="$(dirname "$1")" verify.XXXXXX)
trap 'rm -rf "$folder"' EXIT
tar --extract --file "$1" --directory "$folder"
cd "$folder"
sha256sum --check --strict --quiet SHA256SUMS || { echo "$1 is damaged: use another backup." >&2; exit 65; }
