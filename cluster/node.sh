#!/usr/bin/env bash
# Sets up a node, once: the project in a virtual environment, and the environment variables of
# its login shells, and so of Ray and the sweeps.
#
#     node.sh SHARED [BUCKET]
#
# SHARED: a folder that is the same on all nodes (NFS, EFS, Filestore). BUCKET: s3://NAME,
# where checkpoints and MLflow's artifacts go instead.
set -euo pipefail
shared=$1 bucket=${2:-}
own=~/.ali-sweeps
mkdir -p "$own" "$shared/runs" "$shared/data"

bash ~/ali-sweeps/cluster/install.sh "$own/venv" ~/ali-sweeps'[cluster]'

cat > "$own/env" <<EOF
export PATH=$own/venv/bin:\$PATH
export RAY_AUTH_MODE=token           # the token is in ~/.ray/auth_token
# MLflow's, made of Ray's, so that it need not be spread, and tells a wrong server nothing of Ray's
[ ! -s ~/.ray/auth_token ] || export MLFLOW_TRACKING_TOKEN=\$( (echo mlflow; cat ~/.ray/auth_token) | sha256sum | cut -c 1-64)
export RAY_USAGE_STATS_ENABLED=0
export ALI_OUTPUT_DIR="$shared/runs"   # --output-dir where none is given
export ALI_DATA_DIR="$shared/data"     # data sets by name, where no --data-dir is given
${bucket:+export ALI_STORAGE_PATH=$bucket/runs}
[ ! -f $own/mlflow-uri ] || export MLFLOW_TRACKING_URI=\$(cat $own/mlflow-uri)
# the cluster's own addresses, RAY_HEAD_IP above all, are not asked for through a proxy
export no_proxy=localhost,127.0.0.1,\$(hostname -I | tr -s ' ' ,)${RAY_HEAD_IP:-},\${no_proxy:-\${NO_PROXY:-}}
export NO_PROXY=\$no_proxy
EOF
# first in the file: Debian's .bashrc returns early without a terminal
touch ~/.bashrc
grep -q ali-sweeps/env ~/.bashrc || sed -i "1s|^|. $own/env\n|" ~/.bashrc
[ -s ~/.bashrc ] || echo ". $own/env" > ~/.bashrc
if [ -f ~/.ray/auth_token ]; then chmod 600 ~/.ray/auth_token; fi
