#!/bin/sh
# Prints what is missing on this host: "lacks debian" if one of the Debian packages $2… is not installed, "lacks fedsim" if
# the file $1, the mark of a complete environment, cannot be read by every user.
set -eu
mark=$1
shift
dpkg-query --show --showformat '${db:Status-Status}\n' "$@" 2> /dev/null | grep --quiet --invert-match '^installed$' && echo lacks debian
dpkg-query --show "$@" > /dev/null 2>&1 || echo lacks debian
setpriv --reuid=nobody --regid=nogroup --clear-groups test -r "$mark" || echo lacks fedsim
