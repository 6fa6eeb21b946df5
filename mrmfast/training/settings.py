"""The root config: it only composes the sections that live beside their owners."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le

from mrmfast.config import NonNegative, PositiveInt, Tagged
from mrmfast.data.dataset import DataConfig
from mrmfast.errors import UserError
from mrmfast.models.config import ModelConfig
from mrmfast.objectives import load_objective, objective_config
from mrmfast.training.engine import EngineConfig
from mrmfast.training.optimiser import OptimiserConfig
from mrmfast.training.run_log import RunConfig

DEFAULT_OBJECTIVE = "mrm"


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run is a function of.

    Attributes
    ----------
    seed : int
        Initial weights, order, augmentation, dropout and matched pairs.
    batch_size : int
        Samples per optimiser step over all ranks (paper: 256 for UKB, 8 for TCGA).
    epochs : float
        Length of the run (paper: 50).
    steps : int, optional
        Length in optimiser steps instead of epochs.
    objective : dataclass
        The section of the objective ``name`` (``mrmfast/objectives``).
    data, model, optimiser, engine, run
        Sections; see their dataclasses.
    """

    seed: Annotated[int, Ge(0), Le(2**63 - 1)] = 0
    batch_size: Annotated[PositiveInt, Le(2**20)] = 256
    epochs: Annotated[NonNegative, Le(1e6)] = 50.0
    steps: PositiveInt | None = None
    objective: Annotated[Any, Tagged(objective_config, DEFAULT_OBJECTIVE)] = field(
        default_factory=lambda: objective_config(DEFAULT_OBJECTIVE)()
    )
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=RunConfig)

    # Keys of versions before the objectives had a section each.
    RENAMED: ClassVar[dict[str, str]] = {
        "mrm.tau_image": "objective.mask.tau_image",
        "mrm.tau_genome": "objective.mask.tau_genome",
        "mrm.mask_self": "objective.mask.self_relations",
        "mrm.mask_cross": "objective.mask.cross_relations",
        "mrm.match_self": "objective.match.self_relations",
        "mrm.match_cross": "objective.match.cross_relations",
        "mrm.matching_weight": "objective.match.weight",
        "mrm.matched_pairs": "objective.match.pairs",
        "mrm.stop_gradient": "objective.match.stop_gradient",
        "mrm.genome_from": "objective.reconstruct.genome_from",
        "mrm.norm_pixels": "objective.reconstruct.norm_pixels",
        "mrm.binary_cross_entropy": "objective.reconstruct.binary_cross_entropy",
        "model.relation_blocks": "objective.mask.blocks",
        "model.residual": "objective.mask.residual",
        "model.decoder_width": "objective.reconstruct.image_decoder.width",
        "model.decoder_depth": "objective.reconstruct.image_decoder.depth",
        "model.decoder_heads": "objective.reconstruct.image_decoder.heads",
        "model.genome_decoder_width": "objective.reconstruct.genome_decoder.width",
        "model.genome_decoder_layers": "objective.reconstruct.genome_decoder.layers",
        "engine.checkpoint_activations": "engine.activation_checkpointing",
    }

    def __post_init__(self) -> None:
        name, stage = self.objective.name, self.engine.zero_stage
        highest = load_objective(name).max_zero_stage
        if stage > highest:
            raise UserError(
                f"engine.zero_stage={stage}: objective.name={name} needs whole parameters; take at most {highest}"
            )

        if self.optimiser.clip_by == "tensor" and stage > 0:
            raise UserError(
                f"optimiser.clip_by=tensor: engine.zero_stage={stage} takes tensors apart; set engine.zero_stage=0"
            )

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
            The batch does not divide over the ranks, or leaves the objective fewer samples than it needs.
        """
        if self.batch_size % world:
            raise UserError(
                f"batch_size={self.batch_size} does not divide over {world} ranks; take a multiple of {world}"
            )
        share = self.batch_size // world
        limit = self._limit(share)
        size = next(size for size in range(limit, 0, -1) if share % size == 0)
        name = self.objective.name
        needed = load_objective(name).min_samples_per_pass(self.objective)
        if size < needed:
            raise UserError(
                f"batch_size={self.batch_size} over {world} ranks is {share} samples a rank, in passes of {size} "
                f"(engine.micro_batch={self.engine.micro_batch}): objective.name={name} compares samples of a pass and "
                f"needs {needed}; take fewer ranks, or another batch_size"
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
