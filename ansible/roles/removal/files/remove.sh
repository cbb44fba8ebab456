#!/bin/sh
# Removes from this host everything that the other roles have installed. Idempotent. Prints "changed" if anything was
# removed.
set -eu
export DEBIAN_FRONTEND=noninteractive
units=$(cd /etc/systemd/system && ls -d fedsim* 2> /dev/null || true)
if [ -z "$units" ] && [ ! -e /opt/fedsim ] && [ ! -e /etc/fedsim ] && [ ! -e /var/lib/fedsim ]; then exit 0; fi
echo changed

if [ -e /etc/systemd/system/fedsim.target ]; then
    systemctl stop fedsim.target 'fedsim-*.service' 'fedsim-*.socket' 'fedsim_*'
    systemctl disable --quiet fedsim.target $(systemctl list-unit-files --no-legend 'fedsim-*' 'fedsim_*' | cut -d ' ' -f 1)
fi
rm -rf /etc/systemd/system/fedsim* /etc/sysusers.d/fedsim.conf /etc/tmpfiles.d/fedsim.conf
if [ -d /etc/sysusers.d ]; then rmdir --ignore-fail-on-non-empty /etc/sysusers.d; fi
systemctl daemon-reload
systemctl reset-failed 'fedsim*' 2> /dev/null || true  # fails if no unit had failed

# A database or a proxy that was installed before is kept; only fedsim's part of it is removed.
record=/opt/fedsim/apt/installed
ours() { [ -e "$record" ] && grep --quiet --line-regexp "$1" "$record"; }
if ours mariadb-server; then
    systemctl stop mariadb.service
elif systemctl --quiet is-active mariadb.service; then
    mariadb --execute "DROP DATABASE IF EXISTS fedsim; DROP USER IF EXISTS 'fedsim'@'127.0.0.1', 'fedsim-web'@'127.0.0.1',
        'fedsim-migrations'@'127.0.0.1'"
    rm -f /etc/mysql/mariadb.conf.d/90-fedsim.cnf
    systemctl restart mariadb.service
fi
if ! ours nginx-light && [ -e /etc/nginx/sites-available/fedsim ]; then
    rm -f /etc/nginx/sites-available/fedsim
    ln --symbolic --force ../sites-available/default /etc/nginx/sites-enabled/default
    systemctl reload nginx.service
fi
if [ -s "$record" ]; then
    there=$(mktemp)
    dpkg-query --show --showformat '${db:Status-Abbrev}${Package}\n' | sed --quiet 's/^i. *//p' | sort > "$there"
    gone=$(sort "$record" | comm -12 - "$there")
    rm "$there"
    if [ -n "$gone" ]; then apt-get --quiet=2 --assume-yes purge $gone > /dev/null; fi
fi
if ours mariadb-server; then
    rm -rf /var/lib/mysql /var/lib/mysql-files /var/log/mysql /etc/mysql
    if getent passwd mysql > /dev/null; then userdel mysql; fi
fi
if ours nginx-light; then
    rm -rf /etc/nginx /var/log/nginx /var/lib/nginx /var/www/html/index.nginx-debian.html
    if [ -d /var/www/html ]; then rmdir --ignore-fail-on-non-empty --parents /var/www/html; fi
fi

for user in fedsim fedsim-web; do
    if getent passwd "$user" > /dev/null; then userdel "$user"; fi
done
for group in fedsim-checkpoints fedsim-owner fedsim fedsim-web; do
    if getent group "$group" > /dev/null; then groupdel "$group"; fi
done
rm -rf /opt/fedsim /etc/fedsim /var/lib/fedsim /run/fedsim /run/fedsim-owner /var/backups/fedsim
