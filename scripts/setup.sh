#!/usr/bin/env bash
# Makes the virtual environment that demo.sh and test.sh use, from nothing; does nothing when it is up to date.
# Usage: scripts/setup.sh EXTRAS      e.g. preprocess or preprocess,dev
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -ne 1 ]; then
    echo "usage: bash scripts/setup.sh EXTRAS      EXTRAS: preprocess (to use mrmfast), preprocess,dev (to change it)" >&2
    exit 2
fi
extras=$1
venv=${MRMFAST_VENV:-.venv}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "setup: Python 3.11 or newer is needed; set PYTHON to one" >&2; exit 2; }

# A stamp per set of extras; a change of the pins or the dependencies makes it stale.
stamp="$venv/.installed-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)-$extras"
if [ ! -e "$stamp" ]; then
    echo "setup: installing mrmfast[$extras] into $venv (2 to 4 minutes, 7 GB; PyTorch is the largest part)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    # Warnings about package locations that a machine is set up with are noise here; errors still show.
    "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]" &
    pip=$!
    while kill -0 "$pip" 2>/dev/null; do
        sleep 5
        printf '\rsetup: %4d s, %5d MB installed ' "$SECONDS" "$(du -sm "$venv" 2>/dev/null | cut -f1)"
    done
    printf '\n'
    wait "$pip"
    touch "$stamp"
fi
