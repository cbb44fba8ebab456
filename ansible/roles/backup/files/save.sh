#!/bin/sh
# Saves database and checkpoints in $1.tar while the server is running. A checkpoint is recorded in the database after its
# file is complete, and the file never changes. Files are linked before and after the dump, so that the backup contains
# every checkpoint that the dump lists, even if it was created or deleted in the meantime.
set -eu
umask 077
state=${FEDSIM_STATE:-/var/lib/fedsim}
rm -rf "$1" "$1.tar"
mkdir "$1"
link_checkpoints() { cp --archive --link --no-clobber "$state/server/checkpoints" "$1"; }
link_checkpoints "$1"
mariadb-dump --single-transaction --no-tablespaces fedsim > "$1/database.sql"
link_checkpoints "$1"
cd "$1"
find checkpoints -type f -name '*.tmp' -delete  # incomplete files
find . -type f -exec sha256sum {} + > "$1.sums"
mv "$1.sums" SHA256SUMS
tar --create --file "$1.tar" .
rm -rf "$1"
