#!/bin/sh
# Creates the database and its accounts, of which each may do what grants.sql says; the tables are created by the account
# for migrations. Passwords are generated here, never leave this host, and never appear on a command line. Prints "changed"
# if anything was changed.
set -eu
# The only folder in which the database may write files.
if [ ! -d /var/lib/mysql-files ]; then install --directory --owner mysql --group mysql --mode 700 /var/lib/mysql-files; fi
systemctl enable --quiet --now mariadb.service
umask 077

# $1: the account, $2: its secret. `fedsim` had all privileges before 0.2, so it keeps its name.
account() {
    secret=/etc/fedsim/secrets/$2
    if [ ! -s "$secret" ]; then
        head --bytes 24 /dev/urandom | base64 > "$secret.new"
        mv "$secret.new" "$secret"
    fi
    password=$(cat "$secret")
    works=$(printf '[client]\nhost=127.0.0.1\nuser=%s\npassword="%s"\n' "$1" "$password" |
        mariadb --defaults-file=/dev/stdin --skip-column-names --execute 'SELECT 1' 2> /dev/null || true)
    if [ "$works" = 1 ]; then return; fi
    mariadb <<END
CREATE USER IF NOT EXISTS '$1'@'127.0.0.1';
ALTER USER '$1'@'127.0.0.1' IDENTIFIED BY '$password';
END
    echo changed
}

there=$(mariadb --skip-column-names --execute "SHOW DATABASES LIKE 'fedsim'")
if [ "$there" != fedsim ]; then
    mariadb <<END
CREATE DATABASE fedsim CHARACTER SET utf8mb4;
DROP DATABASE IF EXISTS test;
DELETE FROM mysql.global_priv WHERE User = '';
FLUSH PRIVILEGES;
END
    echo changed
fi
account fedsim database
account fedsim-web database-web
account fedsim-migrations database-migrations
may=$(mariadb --skip-column-names --execute \
    "SELECT COUNT(*) FROM mysql.db WHERE db = 'fedsim' AND user = 'fedsim-migrations' AND host = '127.0.0.1'")
if [ "$may" != 1 ]; then
    mariadb --execute "GRANT ALL ON fedsim.* TO 'fedsim-migrations'@'127.0.0.1'"
    echo changed
fi
