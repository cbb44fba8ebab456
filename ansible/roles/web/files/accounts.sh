#!/bin/sh
# Migrates the schema to this version, and creates the administrator $1 if missing. Prints "changed" if anything was.
set -eu
export FEDSIM_CREDENTIALS=/etc/fedsim/secrets
admin="/opt/fedsim/current/bin/fedsim admin"
schema() { mariadb --skip-column-names --execute 'SELECT version_num FROM fedsim.alembic_version' 2> /dev/null || true; }
before=$(schema)
$admin migrate
if [ "$before" != "$(schema)" ]; then echo changed; fi
if ! $admin users --json | python3 -c 'import json, sys
sys.exit(not any(user["name"] == sys.argv[1] for user in json.load(sys.stdin)["users"]))' "$1"; then
    printf '%s\n' "$FEDSIM_ADMIN_PASSWORD" | $admin create "$1" --password-stdin
    echo changed
fi
