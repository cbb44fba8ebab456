#!/bin/sh
# Adds to /opt/fedsim/apt/installed which packages these ones bring that the host does not have yet. Prints "changed" if
# there are any.
set -eu
noted=/opt/fedsim/apt/installed
touch "$noted"
if dpkg --status "$@" > /dev/null 2>&1; then exit 0; fi
apt-get --quiet=2 update
apt-get --simulate --quiet=2 --no-install-recommends install "$@" |
    sed --quiet 's/^Inst \([^ ]*\) (.*/\1/p' |  # with a version in brackets before it, it is there and is upgraded
    sort --unique --output "$noted" - "$noted"
echo changed
