#!/usr/bin/env bash
# Starts MLflow on the head, on PostgreSQL; does nothing if it runs.
#
#     mlflow.sh SHARED [BUCKET]
#     MLFLOW_BACKEND_STORE_URI=postgresql://ali@HOST/mlflow mlflow.sh SHARED [BUCKET]
#
# The database lies in SHARED/mlflow, the artifacts beside it or in BUCKET/mlflow: they outlive the
# head. One head at a time has that folder (exclusive.py). The second form uses a database that
# somebody else runs, safer than files on NFS; its password is in ~/.pgpass on the head.
# MLflow listens on the loopback address, for `ray attach -p 5000`, and on the address that the
# other nodes know the head by; it requires a token (mlflow_token.py).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
store=$1/mlflow
artifacts=${2:-$1}/mlflow/artifacts
own=~/.ali-sweeps
. "$own/env"
. "$here/wait.sh"
port=${MLFLOW_PORT:-5000}
: "${MLFLOW_TRACKING_TOKEN:?comes from ~/.ray/auth_token: run ray get-auth-token --generate}"
socket=/var/tmp/ali-postgres
postgres=$(ls -d /usr/lib/postgresql/*/bin 2> /dev/null | sort -V | tail -1 || true)
mkdir -p "$store/artifacts"

export MLFLOW_BACKEND_STORE_URI=${MLFLOW_BACKEND_STORE_URI:-}
if [ -z "$MLFLOW_BACKEND_STORE_URI" ]; then
    user=$(id -u)
    if [ "$user" = 0 ]; then user=$(id -u postgres); fi
    if [ -e "$socket" ] && [ "$(stat -c %u "$socket")" != "$user" ]; then
        echo "error: $socket is another user's, whose database is not ours: have it removed" >&2
        exit 1
    fi
    MLFLOW_BACKEND_STORE_URI="postgresql+psycopg2:///mlflow?host=$socket&user=ali"
    if ! "$postgres/pg_isready" -qh "$socket"; then
        setsid nohup python "$here/exclusive.py" "$store" \
            bash "$here/postgres.sh" "$store/database" "$socket" \
            > "$own/postgres.log" 2>&1 < /dev/null &
        wait_for 180 PostgreSQL "$own/postgres.log" "$postgres/pg_isready" -qh "$socket"
    fi
    "$postgres/psql" -h "$socket" -U ali -tA postgres -c \
        "select 1 from pg_database where datname = 'mlflow'" | grep -q 1 ||
        "$postgres/createdb" -h "$socket" -U ali mlflow
fi

server=http://127.0.0.1:$port
if kill -0 "$(cat "$own/mlflow.pid" 2> /dev/null)" 2> /dev/null && answers "$server" > /dev/null; then
    exit 0
fi
if answers "$server" > /dev/null; then
    echo "error: another MLflow answers at $server: stop it, or set MLFLOW_PORT to another port" >&2
    exit 1
fi
address=$(python -c 'import ray; print(ray.util.get_node_ip_address())')
export MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_SERVER_ALLOWED_HOSTS="localhost:*,127.0.0.1:*,$address:*"  # host names it accepts
setsid nohup mlflow server --host 127.0.0.1 --port $port --workers 2 \
    --gunicorn-opts "--bind $address:$port --config '$here/mlflow_token.py'" \
    --artifacts-destination "$artifacts" > "$own/mlflow.log" 2>&1 < /dev/null &
echo $! > "$own/mlflow.pid"
wait_for 120 MLflow "$own/mlflow.log" answers "http://$address:$port"
refuses_strangers "http://$address:$port"
echo "http://$address:$port" > "$own/mlflow-uri"
