#!/usr/bin/env bash
# The main job in miniature, on a GPU where there is one: simulate a biobank, preprocess it, pre-train with MRM, export the encoder.
# Usage: bash scripts/demo.sh [key=value ...]     overrides of configs/demo.yaml, but for run.dir and run.name: everything lands in demo/
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n[%s/6, %d s] %s\n' "$1" "$SECONDS" "$2"; }

step 1 "Environment"
bash scripts/setup.sh preprocess
export PATH="$PWD/${MRMFAST_VENV:-.venv}/bin:$PATH"
# Each demonstration starts again; a complete simulated biobank is kept.
rm -rf demo/dataset demo/runs

step 2 "A simulated biobank: photographs, genotypes, scoring files, rare variants"
python -m preprocess simulate --out demo/raw --participants 64 --seed 0

step 3 "Fundus photographs -> image shards"
python -m preprocess fundus demo/raw/fundus --out demo/dataset

step 4 "Genetics -> packed store: SNPs, polygenic scores, burden"
python -m preprocess snps demo/raw/genotypes --reference a2 --out demo/dataset
# A sixth of the simulated variants is strand-ambiguous: some scores match less than the default of 75 %.
python -m preprocess pgs demo/raw/pgs --genotypes demo/raw/genotypes --min-overlap 0.5 --out demo/dataset
python -m preprocess burden demo/raw/burden/rare.vep.vcf.gz --out demo/dataset

step 5 "Pre-training with Masked Relation Modeling"
# One rank, because a batch of 8 is too small to divide. The last two set the paths of the next step and override "$@".
deepspeed --quiet --num_accelerators 1 mrmfast/train.py --config configs/demo.yaml "$@" run.dir=demo/runs run.name=demo

step 6 "The encoder, loaded by timm alone"
python - <<'PY'
from mrmfast.models.export import load_encoder

encoder = load_encoder("demo/runs/demo/encoder.safetensors")
print(f"{type(encoder).__name__} with {sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M parameters, loaded strictly")
PY

printf '\nDone in %d s. Look at:\n' "$SECONDS"
printf '  %s\n' demo/runs/demo/figures/reconstructions.png demo/runs/demo/figures/loss.png \
    demo/runs/demo/encoder.safetensors demo/runs/demo/metrics.jsonl
