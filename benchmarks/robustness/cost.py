"""What the comparison with digests costs: at the start beside the disk, and afterwards in the loader."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Bench
from benchmarks.harness.turns import in_turns
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.loader import Loader
from mrmfast.formats.checksums import file_sha256
from mrmfast.formats.manifest import Shard
from mrmfast.meters import Meters
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.source import DatasetSource

helpers: Any = importlib.import_module("tests.helpers.common")
SHARDS, BYTES = 4, 128 << 20
IMAGES = 2048  # per round of the loader


def measure(bench: Bench, work: Path) -> None:
    """Record seconds per GB and the ratio of the loader's speeds."""
    shards = _shards(work)
    total = SHARDS * BYTES / 1e9
    cold = _seconds(lambda: list(map(_read, (work / shard.path for shard in shards))), work, shards)
    bench.figure("reading alone, not in the page cache", cold / total, "s/GB")
    hashed = _seconds(lambda: _open(work, shards, work / "cache"), work, shards)
    bench.figure("first use of local shards, hashed, not in the page cache", hashed / total, "s/GB")
    again = time.perf_counter()
    _open(work, shards, work / "cache")
    bench.figure("first use by the next rank or start of this boot", (time.perf_counter() - again) / total, "s/GB")
    warm = time.perf_counter()
    file_sha256(work / shards[0].path)
    bench.figure("hashing on one core, in the page cache", (time.perf_counter() - warm) / (BYTES / 1e9), "s/GB")
    _loader(bench, work / "ds")


def _shards(work: Path) -> list[Shard]:
    (work / "images").mkdir()
    generator = np.random.default_rng(0)
    shards = []
    for number in range(SHARDS):
        path = work / f"images/shard-{number:06d}.tar"
        path.write_bytes(generator.bytes(BYTES))
        os.sync()
        shards.append(Shard(f"images/{path.name}", "", BYTES, 1, file_sha256(path)))
    return shards


def _seconds(call: Callable[[], object], work: Path, shards: list[Shard]) -> float:
    for shard in shards:
        with open(work / shard.path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _read(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def _open(work: Path, shards: list[Shard], cache: Path) -> None:
    with DatasetSource(str(work), str(cache)) as source:
        source.prefetch(shards)
        for shard in shards:
            source.local(shard)
            source.release(shard)


def _loader(bench: Bench, folder: Path) -> None:
    """Compare the loader's speed after the start with and without the comparison."""
    dataset = helpers.write_dataset(folder, participants=256, per_shard=32, size=224)

    def contender(verify: bool) -> Callable[[], None]:
        settings = FetchConfig(verify_local=verify)
        config = DataConfig(path=str(dataset), cache=str(folder.parent / "cache"), fetch=settings, threads=1)
        loader = Loader(
            open_dataset(config),
            config,
            seed=0,
            batch=64,
            micro_batch=64,
            rank=0,
            world=1,
            device=torch.device("cpu"),
            meters=Meters(),
        )
        batches = loader.batches(0)
        next(batches)

        def run() -> None:
            for _ in range(IMAGES // 64):
                next(batches)

        return run

    seconds = in_turns({"on": contender(True), "off": contender(False)}, rounds=5)
    bench.figure("loader, compared with digests", IMAGES / seconds["on"], "images/s")
    bench.figure("loader, not compared", IMAGES / seconds["off"], "images/s")
    bench.bar("loader's speed after the start: compared / not compared", seconds["off"] / seconds["on"], ">=", 0.95)
