#!/bin/sh
# Run on a host: install.sh FOLDER [FILE CERTIFICATE]... moves new keys and their certificates into place together. An
# interruption between the two leaves a certificate that does not match its key: the next run replaces both.
set -eu
folder=$1
shift
while [ $# -gt 0 ]; do
    new=$folder/$1
    printf %s "$2" > "$new.crt.new"
    chmod 644 "$new.crt.new"
    mv --no-target-directory "$new.key.new" "$new.key"
    mv --no-target-directory "$new.crt.new" "$new.crt"
    shift 2
done
echo changed
