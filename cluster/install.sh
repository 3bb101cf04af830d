#!/usr/bin/env bash
# Installs the project, with what it depends on, into a virtual environment.
#
#     install.sh VENV PROJECT         for example: bash cluster/install.sh .venv '.[test]'
#
# PYTHON: the interpreter of a new environment. uv prints what it fetches, and is several times as
# fast as pip. It would take the rest of an interrupted install for installed, so the environment
# is then recreated. Concurrent installs wait for one another.
set -euo pipefail
venv=$1 project=$2 bin=$1/bin
mkdir -p "$(dirname "$venv")"
exec 9> "$venv.lock"
flock 9

if [ -e "$venv/installing" ] || ! "$bin/python" -m pip --version > /dev/null 2>&1; then
    "${PYTHON:-python3}" -m venv --clear "$venv"
fi
touch "$venv/installing"
"$bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
"$bin/uv" pip install --python "$bin/python" --compile-bytecode -e "$project"
rm "$venv/installing"
