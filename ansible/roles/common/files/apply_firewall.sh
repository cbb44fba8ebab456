#!/bin/sh
# Loads the rules of /etc/fedsim/firewall.nft, with the ports on which sshd really listens, and the addresses of the peers that
# are the arguments: addresses, networks or names, which are resolved here. What was resolved is kept for a start without a
# resolver. Everything is one transaction: if a rule is not valid, the rules that were there stay.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
rules=/etc/fedsim/firewall.nft
kept=/etc/fedsim/firewall.addresses
new=$(mktemp)
trap 'rm -f "$new"' EXIT
{ cat "$rules"; echo; } > "$new"
ports=$(sshd -T 2> /dev/null | sed -n 's/^port //p'; ss -Hltnp 2> /dev/null | sed -n '/"sshd"/s/^[^ ]* *[^ ]* *[^ ]* *[^ ]*:\([0-9]*\) .*/\1/p')
for port in $(echo "$ports" | sort -u); do echo "add element inet fedsim ssh { $port }" >> "$new"; done
resolved() {
    for peer; do
        case $peer in
            */* | *:*) echo "$peer" ;;
            *) getent ahosts "$peer" | cut -d ' ' -f 1 | sort -u ;;
        esac
    done
}
addresses=$(resolved "$@" | sort -u)
if [ -n "$addresses" ]; then echo "$addresses" > "$kept"; elif [ -e "$kept" ]; then addresses=$(cat "$kept"); fi
for address in $addresses; do
    case $address in
        *:*) echo "add element inet fedsim peers6 { $address }" ;;
        *) echo "add element inet fedsim peers { $address }" ;;
    esac
done >> "$new"
nft --file "$new"
