#!/bin/sh
# Run by fedsim_backup.timer: saves database and checkpoints in a new file of the folder $1, verifies it, encrypts it to the
# public key $3 if there is one, and then deletes all but the newest $2. A backup that fails deletes nothing.
set -eu
umask 077
scripts=$(dirname "$0")
work=${FEDSIM_STATE:-/var/lib/fedsim}/timed-backup  # on the file system of the checkpoints, which are linked
trap 'rm -rf "$work" "$work.tar" "$work.sums"' EXIT
mkdir -p "$1"
sh "$scripts/save.sh" "$work"
sh "$scripts/verify.sh" "$work.tar"
suffix=tar
rm -f "$1/.unfinished"
if [ -n "${3:-}" ]; then
    suffix=tar.age
    sh "$scripts/encrypt.sh" "$3" "$work.tar" "$1/.unfinished"
else
    mv "$work.tar" "$1/.unfinished"
fi
sync "$1/.unfinished"
mv "$1/.unfinished" "$1/fedsim-$(date +%Y-%m-%d-%H%M%S).$suffix"
ls -1 "$1"/fedsim-*.tar "$1"/fedsim-*.tar.age 2> /dev/null | sort | head --lines="-$2" | while read -r old; do rm -f "$old"; done
