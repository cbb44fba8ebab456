#!/bin/sh
# Creates the database and its account, which has all privileges there and none elsewhere. The password is generated here,
# never leaves this host, and never appears on a command line. Prints "changed" if anything was changed.
set -eu
secret=/etc/fedsim/secrets/database
if [ ! -s "$secret" ]; then
    umask 077
    head --bytes 24 /dev/urandom | base64 > "$secret.new"
    mv "$secret.new" "$secret"
fi
password=$(cat "$secret")
there=$(mariadb --skip-column-names --execute \
    "SELECT COUNT(*) FROM mysql.db WHERE db = 'fedsim' AND user = 'fedsim' AND host = '127.0.0.1'")
works=$(printf '[client]\nhost=127.0.0.1\nuser=fedsim\npassword="%s"\n' "$password" |
    mariadb --defaults-file=/dev/stdin --skip-column-names --execute 'SELECT 1' fedsim 2> /dev/null || true)
if [ "$there" = 1 ] && [ "$works" = 1 ]; then exit 0; fi
mariadb <<END
CREATE DATABASE IF NOT EXISTS fedsim CHARACTER SET utf8mb4;
CREATE USER IF NOT EXISTS 'fedsim'@'127.0.0.1';
ALTER USER 'fedsim'@'127.0.0.1' IDENTIFIED BY '$password';
GRANT ALL ON fedsim.* TO 'fedsim'@'127.0.0.1';
DROP DATABASE IF EXISTS test;
DELETE FROM mysql.global_priv WHERE User = '';
FLUSH PRIVILEGES;
END
echo changed
