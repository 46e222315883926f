#!/usr/bin/env bash
# Environment of a recipe. Uses the repository's .venv, made by `make venv`, unless another
# virtual environment is active already. Sourced in the recipe's folder.

repo_root=$(cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../../.." && pwd)
if [ -z "${VIRTUAL_ENV:-}" ] && [ -x "${repo_root}/.venv/bin/python3" ]; then
    export VIRTUAL_ENV="${repo_root}/.venv"
    export PATH="${VIRTUAL_ENV}/bin:${PATH}"
fi
export LC_ALL=C.UTF-8          # one sorting order, and UTF-8 in logs
export PYTHONUNBUFFERED=1      # logs are followed live
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # one thread per job; training sets its own
# Threads that wait sleep instead of spinning: when another program takes one of two processors, a
# training step of mini/tf_moe takes 0.35 s instead of 0.9 s (up to 4.6 s), for a little more when idle.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
unset repo_root
