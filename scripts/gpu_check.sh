#!/usr/bin/env bash
# Every GPU-only test and benchmark, under 9 minutes, from a bare checkout where torch, Triton and timm are installed.
# Usage: bash scripts/gpu_check.sh [--folder DIR]     writes benchmarks/results/gpu-DEVICE.md; PYTHON names another Python
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec timeout 540 "${PYTHON:-python3}" -m benchmarks.gpu "$@"
