#!/bin/sh
# Creates users and folders, and makes version $1 the current one. Prints "changed" if anything was changed.
set -eu
created=$(systemd-sysusers /etc/sysusers.d/fedsim.conf 2>&1) || { echo "$created"; exit 1; }
case "$created" in *Creating*) echo changed ;; esac
systemd-tmpfiles --create /etc/tmpfiles.d/fedsim.conf  # it does not report changes
if [ "$(readlink /opt/fedsim/current)" != "$1" ]; then
    ln --symbolic --force --no-dereference "$1" /opt/fedsim/current.new
    mv --no-target-directory /opt/fedsim/current.new /opt/fedsim/current
    echo changed
fi
