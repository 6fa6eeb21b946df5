"""The root config: it only composes the sections that live beside their owners."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mrmfast.data.dataset import DataConfig
from mrmfast.errors import UserError
from mrmfast.objectives.mrm import ModelConfig, MRMConfig
from mrmfast.training.engine import EngineConfig
from mrmfast.training.optimiser import OptimiserConfig
from mrmfast.training.run_log import RunConfig


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run is a function of.

    Attributes
    ----------
    seed : int
        Initial weights, order, augmentation, dropout and matched pairs.
    objective : {"mrm"}
    batch_size : int
        Samples per optimiser step over all ranks (paper: 256 for UKB, 8 for TCGA).
    epochs : float
        Length of the run (paper: 50).
    steps : int, optional
        Length in optimiser steps instead of epochs.
    data, model, mrm, optimiser, engine, run
        Sections; see their dataclasses.
    """

    seed: int = 0
    objective: Literal["mrm"] = "mrm"
    batch_size: int = 256
    epochs: float = 50.0
    steps: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mrm: MRMConfig = field(default_factory=MRMConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def total_steps(self, samples: int) -> int:
        """Return the number of optimiser steps for a training set of `samples` images."""
        return self.steps if self.steps is not None else max(1, round(self.epochs * samples / self.batch_size))

    def _limit(self, share: int) -> int:
        size = self.engine.micro_batch
        return share if size is None or size == "auto" else min(size, share)

    def micro_batch(self, world: int) -> int:
        """Return samples per forward pass of a rank; "auto" counts as a rank's whole share until it is settled.

        Raises
        ------
        UserError
            The batch does not divide over the ranks, or leaves L_self a single sample, which it cannot compare.
        """
        if self.batch_size % world:
            raise UserError(
                f"batch_size={self.batch_size} does not divide over {world} ranks; take a multiple of {world}"
            )
        share = self.batch_size // world
        limit = self._limit(share)
        size = next(size for size in range(limit, 0, -1) if share % size == 0)
        matching = self.mrm.match_self and self.mrm.matching_weight > 0
        if matching and min(size, self.mrm.matched_pairs) < 2:
            raise UserError(
                f"batch_size={self.batch_size} over {world} ranks is {share} samples a rank, in passes of {size} "
                f"(engine.micro_batch={self.engine.micro_batch}), of which mrm.matched_pairs={self.mrm.matched_pairs}: "
                "relation matching compares samples of a pass and needs 2; take fewer ranks, another batch_size, "
                "or mrm.match_self=false"
            )
        return size

    def small_passes(self, world: int) -> str | None:
        """Say it where the share of a rank has no divisor near ``engine.micro_batch``; else None."""
        share, size = self.batch_size // world, self.micro_batch(world)
        limit = self._limit(share)
        if 2 * size > limit:
            return None
        return (
            f"engine.micro_batch={limit}, but the largest divisor of {share} samples a rank up to that is {size}: "
            f"{share // size} passes a step; another batch_size would need fewer"
        )


def check(config: TrainConfig) -> None:
    """Reject values that no type can.

    Raises
    ------
    UserError
        Names the key and what it may be.
    """
    o, m = config.optimiser, config.model
    for key, value, low, high in (
        ("seed", config.seed, 0, 2**63 - 1),
        ("batch_size", config.batch_size, 1, None),
        ("steps", 1 if config.steps is None else config.steps, 1, None),
        ("epochs", config.epochs, 0, None),
        ("mrm.tau_image", config.mrm.tau_image, 0, 1),
        ("mrm.tau_genome", config.mrm.tau_genome, 0, 1),
        ("mrm.matching_weight", config.mrm.matching_weight, 0, None),
        ("mrm.matched_pairs", config.mrm.matched_pairs, 1, None),
        ("data.image_size", config.data.image_size, 16, None),
        ("data.rotation", config.data.rotation, 0, 180),
        ("data.flip", config.data.flip, 0, 1),
        ("data.prefetch", config.data.prefetch, 1, 64),
        ("data.threads", 1 if config.data.threads is None else config.data.threads, 1, 1024),
        ("data.shuffle_window", config.data.shuffle_window, 0, None),
        ("model.relation_blocks", m.relation_blocks, 1, None),
        ("model.depth", 1 if m.depth is None else m.depth, 1, None),
        ("model.genome_layers", m.genome_layers, 0, None),
        ("model.alpha_dropout", m.alpha_dropout, 0, 0.99),
        ("model.decoder_depth", m.decoder_depth, 1, None),
        ("model.decoder_heads", m.decoder_heads, 1, None),
        ("model.decoder_width", m.decoder_width, 4, None),
        ("model.genome_decoder_width", m.genome_decoder_width, 1, None),
        ("model.genome_decoder_layers", m.genome_decoder_layers, 0, None),
        ("optimiser.lr", o.lr, 0, None),
        ("optimiser.weight_decay", o.weight_decay, 0, None),
        ("optimiser.clip", o.clip, 0, None),
        ("optimiser.warmup", o.warmup, 0, 1),
        ("optimiser.final", o.final, 0, 1),
        *(("optimiser.betas", beta, 0, 1 - 1e-9) for beta in o.betas),
        (
            "engine.micro_batch",
            micro_batch if isinstance(micro_batch := config.engine.micro_batch, int) else 1,
            1,
            None,
        ),
        ("engine.peak_tflops", 1.0 if config.engine.peak_tflops is None else config.engine.peak_tflops, 1e-6, None),
        ("engine.zero_stage", config.engine.zero_stage, 0, 3),
        ("run.checkpoint_every", config.run.checkpoint_every, 1, None),
        ("run.keep", config.run.keep, 1, None),
    ):
        # Said this way round, NaN fails too.
        if not (low <= value < math.inf and (high is None or value <= high)):
            raise UserError(f"{key}={value}: must be {f'at least {low}' if high is None else f'{low} to {high}'}")
    if m.decoder_width % m.decoder_heads or m.decoder_width % 4:
        raise UserError(f"model.decoder_width={m.decoder_width}: must be a multiple of decoder_heads and of 4")
    if config.run.name in ("", "..") or Path(config.run.name).name != config.run.name:
        raise UserError(f"run.name={config.run.name}: must be a plain name; the folder around it is run.dir")
