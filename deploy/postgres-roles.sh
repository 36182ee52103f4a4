#!/bin/sh
# Runs once, when the database is made: the application's restricted role. The migrations grant it what it may do.
set -eu
psql -v ON_ERROR_STOP=1 -v password="$HUB_APP_PASSWORD" --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE hub_app LOGIN PASSWORD :'password';
SQL
