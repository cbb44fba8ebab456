#!/bin/sh
# Run on a host: request.sh FOLDER CA FILE=NAME... creates a new key FILE.key.new for each identity and prints the signing
# requests, with the program CA. What an interrupted run left is removed.
set -eu
folder=$1
ca=$2
shift 2
for identity; do
    new=$folder/${identity%%=*}
    rm -f "$new.key.new" "$new.crt.new"
    "$ca" request "${identity#*=}" --key "$new.key.new"
done
