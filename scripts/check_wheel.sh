#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment, and runs the demo's steps with it from an empty folder.
# Usage: bash scripts/check_wheel.sh [FOLDER]     FOLDER (default: a temporary one) takes 8 GB; removed unless a step fails
# The time is mostly pip's: PyTorch and what it needs are 7 GB.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ -n "$(ls -A "$folder")" ]; then
    echo "check_wheel: $folder is not empty; name an empty or a new folder" >&2
    exit 2
fi
trap 'status=$?; [ "$status" = 0 ] || echo "check_wheel: failed; remove $folder when you have looked at it" >&2' EXIT

step() { printf '\n[%d s] %s\n' "$SECONDS" "$1"; }

step "Wheel"
# Of what git holds: a file that only this checkout has must not help.
mkdir "$folder/source"
git -C "$root" archive HEAD | tar -x -C "$folder/source"
"${PYTHON:-python3}" -m venv "$folder/venv"
# Warnings about package locations that a machine is set up with are noise here; errors still show.
pip=("$folder/venv/bin/python" -m pip --quiet --quiet --disable-pip-version-check)
"${pip[@]}" wheel --no-deps --wheel-dir "$folder" "$folder/source"
rm -r "$folder/source"

step "Empty environment"
wheel=$(ls "$folder"/*.whl)
"${pip[@]}" install -c "$root/constraints.txt" "$wheel[preprocess]"

step "Demo with $(basename "$wheel") in an empty folder"
mkdir "$folder/work"
cd "$folder/work"
unset PYTHONPATH
export PATH="$folder/venv/bin:$PATH" MRMFAST_CACHE="$folder/cache"
mrmfast --version
mrmfast --help >/dev/null
mrmfast preprocess simulate --out raw --participants 64 # burden: fewer have no rare carriers
mrmfast preprocess fundus raw/fundus --out dataset
mrmfast preprocess snps raw/genotypes --reference a2 --out dataset
mrmfast preprocess pgs raw/pgs --genotypes raw/genotypes --min-overlap 0.5 --out dataset
mrmfast preprocess burden raw/burden/rare.vep.vcf.gz --out dataset
mrmfast preprocess report dataset
mrmfast check dataset
mrmfast train --config demo data.path=dataset steps=4
mrmfast train --config demo data.path=dataset steps=6 --resume
python - <<'PY'
import mrmfast

encoder = mrmfast.load_encoder("runs/demo/encoder.safetensors")
print(f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M parameters, from {mrmfast.__file__}")
PY
cd "$root"
rm -rf "$folder"
step "Done"
