#!/bin/sh
# Migrates the schema to this version, lets the accounts of the database do what the file grants.sql says and no more,
# and creates the administrator $1 if missing, who must change the password at the first log-in. Prints "changed" if anything was.
set -eu
export FEDSIM_CREDENTIALS=/etc/fedsim/secrets
admin="/opt/fedsim/current/bin/fedsim admin"
schema() { mariadb --skip-column-names --execute 'SELECT version_num FROM fedsim.alembic_version' 2> /dev/null || true; }
before=$(schema)
$admin migrate --user fedsim-migrations --password-file database-migrations
if [ "$before" != "$(schema)" ]; then echo changed; fi

# Granted anew only if they differ from what was granted last: for a moment an account has no privileges.
record=/opt/fedsim/records/grants
granted() {
    for account in fedsim fedsim-web fedsim-migrations; do
        mariadb --skip-column-names --execute "SHOW GRANTS FOR '$account'@'127.0.0.1'"
    done | sed 's/ IDENTIFIED BY .*//' | sort
}
wanted=$(cat /opt/fedsim/database/grants.sql)
if [ "$wanted
$(granted)" != "$(cat "$record" 2> /dev/null || true)" ]; then
    echo "$wanted" | mariadb
    mkdir -p "${record%/*}"
    printf '%s\n%s\n' "$wanted" "$(granted)" > "$record"
    echo changed
fi

if ! $admin users --json | python3 -c 'import json, sys
sys.exit(not any(user["name"] == sys.argv[1] for user in json.load(sys.stdin)["users"]))' "$1"; then
    printf '%s\n' "$FEDSIM_ADMIN_PASSWORD" | $admin create "$1" --password-stdin --must-change-password
    echo changed
fi
