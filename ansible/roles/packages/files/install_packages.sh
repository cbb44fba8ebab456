#!/bin/sh
# Records in /opt/fedsim/apt/installed the packages that installing these would add to the host, so that they can be removed
# with fedsim, and installs them. Prints "changed" if there are any.
set -eu
export DEBIAN_FRONTEND=noninteractive
umask 022
record=/opt/fedsim/apt/installed
mkdir -p /opt/fedsim/apt/lists
touch "$record"
if dpkg --status "$@" > /dev/null 2>&1; then exit 0; fi
apt-get --quiet=2 update
apt-get --simulate --quiet=2 --no-install-recommends install "$@" |
    sed --quiet 's/^Inst \([^ ]*\) (.*/\1/p' |  # a version in brackets before it means an upgrade
    sort --unique --output "$record" - "$record"
# Another program, such as one that upgrades the host regularly, may be using dpkg.
apt-get --quiet=2 --assume-yes --no-install-recommends --option DPkg::Lock::Timeout=300 --option Dpkg::Use-Pty=0 \
    --option Dpkg::Options::=--force-confdef --option Dpkg::Options::=--force-confold install "$@"
echo changed
