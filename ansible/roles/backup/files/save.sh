#!/bin/sh
# Saves database and checkpoints in $1.tar while the server works. A checkpoint never changes once it is there, and is
# noted in the database after that. So what is linked before the dump and after it holds all that the dump tells of:
# what was made in between, and also what was deleted.
set -eu
umask 077
rm -rf "$1" "$1.tar"
mkdir "$1"
link_checkpoints() { cp --archive --link --no-clobber /var/lib/fedsim/server/checkpoints "$1"; }
link_checkpoints "$1"
mariadb-dump --single-transaction --no-tablespaces fedsim > "$1/database.sql"
link_checkpoints "$1"
cd "$1"
find checkpoints -type f -name '*.tmp' -delete  # half-written ones
find . -type f -exec sha256sum {} + > "$1.sums"
mv "$1.sums" SHA256SUMS
tar --create --file "$1.tar" .
rm -rf "$1"
