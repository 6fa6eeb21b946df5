"""20 steps of the demo config on the demo's simulated biobank: the losses that a refactor must reproduce.

Remake them, after a change that is meant to change them, with

    python tests/helpers/golden_run.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers.common import ROOT, launch, read_jsonl

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "demo_losses.json"
STEPS = 20
PARTS = ("loss", "loss/image", "loss/genome", "loss/self", "loss/cross")


def demo_dataset(folder):
    """Simulate and preprocess the demo's biobank as scripts/demo.sh does; return the dataset."""
    raw, dataset = folder / "raw", folder / "dataset"
    for command in (
        ["simulate", "--out", raw, "--participants", "64", "--seed", "0"],
        ["fundus", raw / "fundus", "--out", dataset],
        ["snps", raw / "genotypes", "--reference", "a2", "--out", dataset],
        ["pgs", raw / "pgs", "--genotypes", raw / "genotypes", "--out", dataset],
        ["burden", raw / "burden/rare.vep.vcf.gz", "--out", dataset],
    ):
        subprocess.run(
            [sys.executable, "-m", "preprocess", *map(str, command)], cwd=ROOT, check=True, capture_output=True
        )
    return dataset


def demo_losses(dataset, folder):
    """Train through ``mrmfast/train.py``; return the parts of the loss of every step."""
    settings = (f"steps={STEPS}", f"data.path={dataset}", f"run.dir={folder}", "run.name=golden")
    # One thread: another number adds up in another order, which flips a mask now and then (0.2 % of step 20's loss).
    done = launch("--config", "configs/demo.yaml", *settings, environment={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    entries = read_jsonl(folder / "golden/metrics.jsonl")
    return {part: [entry[part] for entry in entries] for part in PARTS}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = demo_losses(demo_dataset(Path(place)), Path(place))
    GOLDEN.parent.mkdir(exist_ok=True)
    rounded = {part: [float(f"{value:.7g}") for value in values] for part, values in found.items()}
    GOLDEN.write_text(json.dumps(rounded, indent=1) + "\n")
    print(f"wrote {GOLDEN}")
