#!/bin/sh
# Creates users and folders, and makes version $1 the current one. Prints "changed" if anything was changed.
# With $2, a list of users with commas between them, exactly these are members of the group of the node's owner.
set -eu
created=$(systemd-sysusers /etc/sysusers.d/fedsim.conf 2>&1) || { echo "$created"; exit 1; }
case "$created" in *Creating*) echo changed ;; esac
if [ $# -gt 1 ]; then
    for owner in $(echo "$2" | tr ',' ' '); do
        if ! getent passwd "$owner" > /dev/null; then
            echo "The user $owner, named by fedsim_owners, does not exist on this host: create it (adduser)." >&2
            exit 67
        fi
    done
    members=$(getent group fedsim-owner | cut -d : -f 4)
    if [ "$(echo "$members" | tr ',' '\n' | sort)" != "$(echo "$2" | tr ',' '\n' | sort)" ]; then
        gpasswd --members "$2" fedsim-owner
        echo changed
    fi
fi
systemd-tmpfiles --create /etc/tmpfiles.d/fedsim.conf  # it does not report changes
if [ "$(readlink /opt/fedsim/current)" != "$1" ]; then
    ln --symbolic --force --no-dereference "$1" /opt/fedsim/current.new
    mv --no-target-directory /opt/fedsim/current.new /opt/fedsim/current
    echo changed
fi
