"""How much benchmarks.gpu measures, and how it times."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton

from benchmarks.harness.turns import in_turns
from benchmarks.relation.floor import DEFAULTS
from benchmarks.relation.shape import Shape
from mrmfast.models.decoders import GenomeDecoderConfig, ImageDecoderConfig
from mrmfast.objectives.mrm import ReconstructConfig


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `TINY` runs interpreted on a CPU, so that the tests cover benchmarks.gpu.

    Attributes
    ----------
    shapes : dict
        Relation masking: name and shape.
    checked : tuple of (B, H, N, M, d)
    thresholds : int
        Rows searched.
    participants, features : int
        Of the genome to unpack.
    images, arch, pixels
        Of the training step.
    depth : int or None
        Blocks of its ViT; None: the architecture's own.
    decoders : ReconstructConfig
        Its decoders.
    rounds : int
    tiles : int
        Images of the dataset that loader and main job read.
    batch, steps : int
        Of the main job.
    micro_batches : tuple of int
        Of the training step and of the main job.
    settings : tuple of str
        Further ``key=value`` of the main job.
    """

    shapes: dict[str, Shape]
    checked: tuple[tuple[int, int, int, int, int], ...]
    thresholds: int
    participants: int
    features: int
    images: int
    arch: str
    pixels: int
    depth: int | None
    decoders: ReconstructConfig
    rounds: int
    tiles: int
    batch: int
    steps: int
    micro_batches: tuple[int, ...]
    settings: tuple[str, ...]


CHECKED = (
    *((2, 12, 197, 197, 64), (2, 12, 197, 48, 64), (2, 12, 48, 197, 64), (2, 3, 50, 50, 80), (1, 2, 65, 17, 128)),
    # Enough samples x heads for a program to go through all rows of a head, as in training.
    *((64, 12, 50, 50, 64), (43, 12, 197, 197, 64)),
)
FULL = Sizes(
    shapes=DEFAULTS,
    checked=CHECKED,
    thresholds=1_000_000,
    participants=256,
    features=26_909,
    images=64,
    arch="vit_base_patch16_224",
    pixels=224,
    depth=None,
    decoders=ReconstructConfig(),
    rounds=5,
    tiles=2048,
    batch=256,
    steps=40,
    micro_batches=(64, 256),
    settings=(),
)
SMALL_MODEL = (
    "model.depth=2",
    "model.genome_layers=1",
    "data.threads=1",
    "objective.reconstruct.image_decoder={width: 32, depth: 1, heads: 2}",
    "objective.reconstruct.genome_decoder.width=32",
)
TINY = Sizes(
    shapes={"tiny": Shape(1, 2, 17, 20, 16)},
    checked=((1, 2, 17, 20, 16),),
    thresholds=2_000,
    participants=5,
    features=61,
    images=2,
    arch="vit_tiny_patch16_224",
    pixels=32,
    depth=2,
    decoders=ReconstructConfig(image_decoder=ImageDecoderConfig(32, 1, 2), genome_decoder=GenomeDecoderConfig(32, 1)),
    rounds=1,
    tiles=16,
    batch=4,
    steps=4,
    micro_batches=(2, 4),
    settings=SMALL_MODEL,
)


def seconds(calls: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, float]:
    """Return the median seconds of each call over rounds in which they take turns."""
    if device != "cuda":
        return in_turns(calls, rounds)
    durations: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            milliseconds: Any = triton.testing.do_bench(call, warmup=5, rep=30, return_mode="median")
            durations[name].append(milliseconds / 1e3)
    return {name: statistics.median(values) for name, values in durations.items()}
