#!/usr/bin/env bash
# Make the virtual environment of this repository and install the package into it, editable.
#
#   tools/make_venv.sh VENV_DIR [PYTHON]
#
# PYTHON: interpreter (default: the first of python3, python3.12, python3.11, python3.10 that fits).
# Needs no root. Safe to repeat, and to start again after a kill. Called by `make venv`.
set -euo pipefail

die() {
    echo "error: $*" >&2
    exit 2
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

[ $# -ge 1 ] || die "usage: tools/make_venv.sh VENV_DIR [PYTHON]"
venv=$1
python=${2:-}
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ -n "${python}" ]; then
    command -v "${python}" >/dev/null || die "PYTHON='${python}': no such program; give the path of a Python 3.10 to 3.12"
    fits "${python}" || die "PYTHON='${python}' is $("${python}" -V 2>&1); expected Python 3.10 to 3.12"
else
    for candidate in python3 python3.12 python3.11 python3.10; do
        if fits "${candidate}"; then
            python=${candidate}
            break
        fi
    done
    [ -n "${python}" ] || die "no Python 3.10 to 3.12 on PATH ($(python3 -V 2>&1 || true)); install one, or say where it is: make venv PYTHON=/path/to/python3.11"
fi

# pyworld (required by ESPnet) and pesq have no wheels.
"${python}" -c 'import ensurepip, venv' 2>/dev/null ||
    die "${python} lacks the venv module; on Debian: apt install python3-venv"
command -v cc >/dev/null || die "no C compiler (cc) on PATH; on Debian: apt install build-essential"
command -v c++ >/dev/null || die "no C++ compiler (c++) on PATH; on Debian: apt install build-essential"
include=$("${python}" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[ -f "${include}/Python.h" ] || die "${include}/Python.h is missing; on Debian: apt install python3-dev"
free_gb=$(($(df -Pk "${repo}" | awk 'NR == 2 { print $4 }') / 1000000))
[ -d "${venv}" ] || [ "${free_gb}" -ge 8 ] ||
    die "${free_gb} GB free in ${repo}; expected 8 (most of it for torch); free some space"

echo "Installing into ${venv} with $("${python}" -V) (some minutes; about 3 GB to download) ..."
"${python}" -m venv "${venv}"
export PIP_DISABLE_PIP_VERSION_CHECK=1
# pip 26.3 refuses ci_sdr, a dependency of ESPnet, for the web address in an extra of it.
"${venv}/bin/python" -m pip install --quiet "pip>=24,<26.3"
"${venv}/bin/python" -m pip install --prefer-binary --constraint "${repo}/constraints.txt" \
    --editable "${repo}[dev]"
