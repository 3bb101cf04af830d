#!/usr/bin/env bash
# Runs PostgreSQL on a folder that no other server uses (exclusive.py), until it is stopped.
#
#     postgres.sh DATABASE SOCKET
#
# It listens on a socket in the folder SOCKET, which only its user enters.
set -euo pipefail
database=$1 socket=$2
postgres=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
if [ "$(id -u)" = 0 ]; then as_user=(--reuid=postgres --regid=postgres --init-groups); else as_user=(); fi

mkdir -p "$socket"
if [ "$(id -u)" = 0 ]; then chown postgres "$socket"; fi
chmod 700 "$socket"
cd /
if [ ! -f "$database/PG_VERSION" ]; then  # made beside it: a partial one is never used
    rm -rf "$database.new"
    mkdir "$database.new"
    if [ "$(id -u)" = 0 ]; then chown postgres "$database.new"; fi
    setpriv "${as_user[@]}" "$postgres/initdb" -D "$database.new" -U ali --auth=trust \
        --encoding=UTF8 > /dev/null
    if [ -d "$database" ]; then rmdir "$database"; fi
    mv "$database.new" "$database"
fi
# A server that was killed leaves its process number, which another process may have by now:
# PostgreSQL would take that for a server and refuse to start.
left=$(head -n 1 "$database/postmaster.pid" 2> /dev/null || true)
if [ -n "$left" ] && [ "/proc/$left/cwd" -ef "$database" ]; then
    echo "error: PostgreSQL runs on $database already, as process $left: stop it" >&2
    exit 1
fi
rm -f "$database/postmaster.pid" "$socket"/.s.PGSQL.*
# pdeathsig: if exclusive.py is killed, nothing renews the lease any more.
exec setpriv --pdeathsig QUIT "${as_user[@]}" "$postgres/postgres" -D "$database" \
    -k "$socket" -c listen_addresses=
