"""The main job on real images: fundus photographs with simulated genotypes, glioma tiles with their own genetics."""

import csv
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers.common import ROOT, launch, read_jsonl, real_data

pytestmark = pytest.mark.slow
SMALL = ["data.image_size=112", "model.arch=vit_tiny_patch16_224", "model.depth=5", "run.checkpoint_every=1000"]


def preprocess(*arguments):
    command = [sys.executable, "-m", "preprocess", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def fall(folder):
    """Mean loss of the last ten steps over that of the first ten."""
    losses = [entry["loss"] for entry in read_jsonl(folder / "metrics.jsonl")]
    return np.mean(losses[-10:]) / np.mean(losses[:10])


def test_real_photographs_with_simulated_genotypes(tmp_path):
    photographs = real_data("fundus")
    raw, dataset = tmp_path / "raw", tmp_path / "dataset"
    files = sorted(
        path.relative_to(photographs)
        for path in photographs.rglob("*")
        if path.suffix in (".jpg", ".tif") and "masks" not in path.parts and "vessel" not in path.name
    )
    preprocess("simulate", "--out", raw, "--participants", len(files), "--seed", 1)
    with open(raw / "traits.tsv", encoding="utf-8") as table:
        ids = [row["eid"] for row in csv.DictReader(table, delimiter="\t")]
    with open(tmp_path / "pairs.csv", "w", encoding="utf-8") as pairs:
        pairs.write("file,participant\n" + "".join(f"{f},{one}\n" for f, one in zip(files, ids, strict=True)))
    split = ("--test-fraction", 0)
    preprocess("fundus", photographs, "--out", dataset, "--participant-table", tmp_path / "pairs.csv", *split)
    preprocess("snps", raw / "genotypes", "--reference", "a2", "--out", dataset, *split)
    overlap = ("--min-overlap", 0.5)  # strand-ambiguous variants of the simulation are dropped
    preprocess("pgs", raw / "pgs", "--genotypes", raw / "genotypes", "--out", dataset, *split, *overlap)
    preprocess("burden", raw / "burden/rare.vep.vcf.gz", "--out", dataset, *split)
    arguments = ["--config", "configs/demo.yaml", f"data.path={dataset}", f"run.dir={tmp_path}", "run.name=run"]
    shallow = "objective.reconstruct.image_decoder.depth=2"
    done = launch(*arguments, *SMALL, "batch_size=16", "steps=60", shallow, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{len(files)} images" in done.stderr
    assert fall(tmp_path / "run") <= 0.5
    assert (tmp_path / "run/figures/reconstructions.png").stat().st_size > 20_000


def test_real_pairs_of_slides_and_genetics(tmp_path):
    source, dataset = real_data("pathology/tcga_gbmlgg"), tmp_path / "dataset"
    preprocess("pathology", source, "--out", dataset, "--test-fraction", 0)
    preprocess("expression", source / "genomics_8patients.csv", "--out", dataset, "--test-fraction", 0)
    arguments = ["--config", "configs/tcga.yaml", f"data.path={dataset}", f"run.dir={tmp_path}", "run.name=run"]
    small = [*SMALL, "objective.reconstruct.image_decoder={depth: 1, width: 64, heads: 2}"]
    done = launch(*arguments, *small, "steps=40", ranks=1, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "39 images" in done.stderr
    assert "1,590 genetic features" in done.stderr
    assert fall(tmp_path / "run") < 0.9
