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
# Waiting threads spin for a moment only, then sleep. GNU OpenMP's own rule is to spin for long: as
# fast on an idle machine (a step of mini/tf_moe: 0.2 s on 2 threads), but several times slower as
# soon as another program wants one of the processors.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-100000}"
unset repo_root
