"""Datasets of random samples that know their own number, for benchmarks that fetch and don't decode."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mrmfast.formats.manifest import Manifest, Shard

NUMBER = 8  # bytes; a sample begins with its number, so that a duplicate or a swap is detected


def write(folder: Path, shards: int, samples: int, size: int, seed: int = 0) -> tuple[Manifest, list[bytes]]:
    """Write `shards` files of `samples` samples of `size` bytes each, and the manifest.

    Returns
    -------
    Manifest
    list of bytes
        SHA-256 of each sample.
    """
    generator = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    entries, digests = [], []
    for shard in range(shards):
        block = generator.integers(0, 256, (samples, size), dtype=np.uint8)
        numbers = np.arange(shard * samples, (shard + 1) * samples, dtype="<u8")
        block[:, :NUMBER] = numbers.view(np.uint8).reshape(-1, NUMBER)
        name, raw = f"images/shard-{shard:06d}.tar", block.tobytes()
        (folder / name).write_bytes(raw)
        entries.append(Shard(name, f"{name}.idx", len(raw), samples, hashlib.sha256(raw).hexdigest()))
        digests += [hashlib.sha256(row.tobytes()).digest() for row in block]
    manifest = Manifest(shards=entries)
    (folder / "dataset.json").write_text(manifest.to_json())
    return manifest, digests


def read(path: Path, samples: int) -> Iterator[tuple[int, bytes]]:
    """Yield each sample's own number and SHA-256 of a fetched shard."""
    raw = path.read_bytes()
    size = len(raw) // samples
    for start in range(0, len(raw), size):
        sample = raw[start : start + size]
        yield int.from_bytes(sample[:NUMBER], "little"), hashlib.sha256(sample).digest()
