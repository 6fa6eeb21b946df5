#!/usr/bin/env bash
# Every GPU-only test and benchmark, under 6 minutes, from a bare checkout where torch, Triton and timm are installed.
# Usage: bash scripts/gpu_check.sh [--folder DIR] [--only SECTION ...] [--dry-run]
# Writes gpu-CARD.json and .md into benchmarks/results; PYTHON names another Python. Exit status 2: no GPU.
# A machine without a network needs DALI and DeepSpeed unpacked into a folder SITE first:
#   export PYTHONPATH=SITE LD_LIBRARY_PATH=SITE/nvidia/cu13/lib
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
