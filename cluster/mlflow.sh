#!/usr/bin/env bash
# Starts MLflow on the head, over PostgreSQL; does nothing where it runs.
#
#     mlflow.sh SHARED [BUCKET]
#
# The database lies in SHARED/mlflow, the artifacts beside it or in BUCKET/mlflow: they outlive the
# head.
# MLflow listens on the loopback address, for `ray attach -p 5000`, and on the address that the
# other nodes know the head by. PostgreSQL listens on a socket in a folder that only its user enters.
set -euo pipefail
store=$1/mlflow
artifacts=${2:-$1}/mlflow/artifacts
own=~/.ali-sweeps
. "$own/env"
port=5000
address=$(python -c 'import ray; print(ray.util.get_node_ip_address())')
postgres=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
socket=/var/tmp/ali-postgres

if curl -fs "http://127.0.0.1:$port/health" > /dev/null; then exit 0; fi

# PostgreSQL refuses to run as root
as_user() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
mkdir -p "$store/artifacts" "$store/database" "$socket"
if [ "$(id -u)" = 0 ]; then chown postgres "$store/database" "$socket"; fi
chmod 700 "$store/database" "$socket"
cd /
if [ ! -f "$store/database/PG_VERSION" ]; then
    as_user "$postgres/initdb" -D "$store/database" -U ali --auth=trust --encoding=UTF8 > /dev/null
fi
as_user "$postgres/pg_ctl" -D "$store/database" -w -l "$socket/log" \
    -o "-k $socket -c listen_addresses=" start > /dev/null
"$postgres/psql" -h "$socket" -U ali -tA postgres -c \
    "select 1 from pg_database where datname = 'mlflow'" | grep -q 1 ||
    "$postgres/createdb" -h "$socket" -U ali mlflow

export MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_SERVER_ALLOWED_HOSTS="localhost:*,127.0.0.1:*,$address:*"  # names it may be asked by
setsid nohup mlflow server --host 127.0.0.1 --port $port --workers 2 \
    --gunicorn-opts "--bind $address:$port" \
    --backend-store-uri "postgresql+psycopg2:///mlflow?host=$socket&user=ali" \
    --artifacts-destination "$artifacts" > "$own/mlflow.log" 2>&1 < /dev/null &
for _ in $(seq 120); do
    kill -0 $! 2> /dev/null || break
    if curl -fs "http://$address:$port/health" > /dev/null; then
        echo "http://$address:$port" > "$own/mlflow-uri"
        exit 0
    fi
    sleep 1
done
echo "MLflow does not answer: see $own/mlflow.log" >&2
exit 1
