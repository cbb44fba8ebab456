#!/bin/sh
# Records in /opt/fedsim/apt/installed the packages that installing these would add to the host, so that they can be removed
# with fedsim. Prints "changed" if there are any.
set -eu
record=/opt/fedsim/apt/installed
touch "$record"
if dpkg --status "$@" > /dev/null 2>&1; then exit 0; fi
apt-get --quiet=2 update
apt-get --simulate --quiet=2 --no-install-recommends install "$@" |
    sed --quiet 's/^Inst \([^ ]*\) (.*/\1/p' |  # a version in brackets before it means an upgrade
    sort --unique --output "$record" - "$record"
echo changed
