#!/bin/sh
# Replaces database and checkpoints by those of the backup $1.tar. fedsim must be stopped.
set -eu
umask 077
rm -rf "$1"
mkdir "$1"
tar --extract --file "$1.tar" --directory "$1"
cd "$1"
sha256sum --check --strict --quiet SHA256SUMS
mariadb --execute 'DROP DATABASE IF EXISTS fedsim; CREATE DATABASE fedsim CHARACTER SET utf8mb4'
mariadb fedsim < database.sql
# The state of tasks belongs to the replaced database; only the server's own data is kept.
find /var/lib/fedsim/server -mindepth 1 -maxdepth 1 ! -name data -exec rm -rf {} +
chown --recursive fedsim:fedsim-checkpoints checkpoints
chmod --recursive u=rwX,g=rX,o= checkpoints
find checkpoints -type d -exec chmod g+s {} +
mv checkpoints /var/lib/fedsim/server/
systemd-tmpfiles --create /etc/tmpfiles.d/fedsim.conf
FEDSIM_CREDENTIALS=/etc/fedsim/secrets /opt/fedsim/current/bin/fedsim admin migrate \
    --user fedsim-migrations --password-file database-migrations
cd /
rm -rf "$1" "$1.tar"
