#!/bin/sh
# Unpacks a backup beside itself, compares every file with its digest, and clears up.
set -eu
if [ ! -f "$1" ]; then
    echo "There is no backup $1: say which one with -e backup=FILE (a path from where you are, or a full one)." >&2
    exit 66
fi
folder=$(mktemp --directory --tmpdir="$(dirname "$1")" verify.XXXXXX)
trap 'rm -rf "$folder"' EXIT
tar --extract --file "$1" --directory "$folder"
cd "$folder"
sha256sum --check --strict --quiet SHA256SUMS || { echo "$1 is damaged: take another backup." >&2; exit 65; }
