#!/usr/bin/env bash
# Installs and passes the tests. Usage: bash scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh preprocess,dev
export PATH="$PWD/${MRMFAST_VENV:-.venv}/bin:$PATH"

echo "test: style, types, floors"
ruff check .
ruff format --check .
mypy
lint-imports
echo "test: behaviour"
# A process a core, with one thread each: threads of two processes would wait for each other.
export OMP_NUM_THREADS=1
exec python -m pytest -n auto --dist worksteal "$@"
