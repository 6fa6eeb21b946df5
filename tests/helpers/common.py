"""What tests share: tiny datasets, real data where it lies, training as a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mrmfast.data.genetics.store import FeatureTable, write_modality
from mrmfast.formats.image_shards import Sample, finalise_images, write_shard
from mrmfast.formats.manifest import SplitRule, claim_splits
from tests.helpers.forked import Ranks

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
N_SNPS, N_SCORES, N_GENES = 37, 5, 11

# A ViT of three blocks and three heads: what the tests measure does not depend on size.
TINY_MODEL = [
    "data.image_size=32",
    "model.arch=vit_tiny_patch16_224",
    "model.depth=3",
    "model.genome_layers=2",
    "data.threads=1",
]
TINY = [
    *TINY_MODEL,
    "objective.reconstruct.image_decoder={width: 32, depth: 1, heads: 2}",
    "objective.reconstruct.genome_decoder.width=32",
]


def real_data(part: str) -> Path:
    """Return a folder of real data, or skip the test."""
    path = DATA / part
    if not path.exists():
        pytest.skip(f"real data is absent: {path.relative_to(ROOT.parent)}")
    return path


def write_dataset(path: Path, *, participants=12, per_shard=7, size=32, genetics=True, ids=None, test_fraction=0.0):
    """Write a small dataset through the real writers; two images a participant."""
    generator = np.random.default_rng(5)
    claim_splits(path, SplitRule(0, test_fraction))
    ids = ids or [str(1000000 + 7 * i) for i in range(participants)]
    samples = []
    for number in range(2 * len(ids)):
        image = cv2.resize(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8), (size, size))
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        samples.append(Sample(f"{number:09d}", jpeg, ids[number // 2], {"eye": ("left", "right")[number % 2]}))
    parts = [
        write_shard(path, shard, samples[start : start + per_shard])
        for shard, start in enumerate(range(0, len(samples), per_shard))
    ]
    finalise_images(path, parts, image_size=size, schema={"jpg": "RGB"}, statistics={})
    if genetics:
        shuffled = [ids[i] for i in generator.permutation(len(ids))]
        names = [f"f{i}" for i in range(N_SNPS)]
        groups = ["chr1"] * 20 + ["chr2"] * (N_SNPS - 20)
        codes = generator.integers(-1, 3, (len(ids), N_SNPS))
        table = FeatureTable.build(names, groups, fill=generator.integers(0, 3, N_SNPS))
        write_modality(path, "snps", "genotype", shuffled, table, [codes[:5], codes[5:]])
        scores = generator.standard_normal((len(ids), N_SCORES)).astype(np.float32)
        table = FeatureTable.build([f"PGS{i}" for i in range(N_SCORES)], ["part1"] * N_SCORES)
        write_modality(path, "pgs", "float", shuffled, table, [scores])
        table = FeatureTable.build([f"g{i}" for i in range(N_GENES)], ["chr1"] * N_GENES)
        write_modality(path, "burden", "binary", shuffled, table, [generator.integers(0, 2, (len(ids), N_GENES))])
    return path


def launch(*arguments, ranks=0, timeout=240, environment=None):
    """Run ``mrmfast/train.py`` as a user does, through the deepspeed launcher when `ranks` is given."""
    python = str(Path(sys.executable).parent)
    # gloo must not look for an interface: the machine may have none but loopback.
    env = {**os.environ, "PATH": f"{python}:{os.environ['PATH']}", "GLOO_SOCKET_IFNAME": "lo", **(environment or {})}
    env["CUDA_VISIBLE_DEVICES"] = ""
    start = (
        ["deepspeed", "--quiet", "--num_accelerators", str(ranks), "--master_port", str(free_port())]
        if ranks
        else [sys.executable]
    )
    command = [*start, "mrmfast/train.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def start(*arguments, ranks=1, environment=None):
    """Begin a run of forked ranks; see :mod:`tests.helpers.forked`."""
    return Ranks([str(one) for one in arguments], ranks, environment or {}, free_port())


def train(*arguments, ranks=1, timeout=240, environment=None):
    """Run forked ranks to their end."""
    return start(*arguments, ranks=ranks, environment=environment).wait(timeout)


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tiny_run(tmp_path, dataset, name="run", **settings):
    """Arguments of a short run on a tiny dataset."""
    defaults = {"batch_size": 8, "steps": 4, "run.checkpoint_every": 1000, "run.log_samples": "true"}
    merged = {**defaults, "data.path": dataset, "run.dir": tmp_path, "run.name": name, **settings}
    return ["--config", "configs/demo.yaml", *TINY, *(f"{key}={value}" for key, value in merged.items())]


def read_jsonl(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
