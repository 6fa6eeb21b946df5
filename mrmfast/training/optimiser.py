"""Parameter groups, and what changes in them with the step."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, Lt
from pydantic import AllowInfNan
from torch import nn

from mrmfast.config import NonNegative, Share
from mrmfast.objectives.base import TrainableModule
from mrmfast.training.adamw import AdamW
from mrmfast.training.flat_adamw import FlatAdamW
from mrmfast.training.schedules import SCHEDULES, ScheduleName, half_cosine

Beta = Annotated[float, AllowInfNan(False), Ge(0), Lt(1)]


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW and its schedule.

    Attributes
    ----------
    lr : float
        Peak learning rate of all groups (paper: 1e-3).
    weight_decay : float
        Of matrices [ours]; vectors have none, nor has what an objective exempts.
    weight_decay_end : float, optional
        Weight decay at the end of the run, reached on half a cosine (DINO, iBOT); constant by default.
    betas : tuple of two floats
        Decay rates of AdamW's running means of the gradient and of its square.
    clip : float
        Largest gradient norm; 0 turns clipping off.
    clip_by : {"all", "tensor"}
        Whether `clip` bounds the norm of all gradients together, or of each tensor's on its own (DINO, iBOT; needs
        ``engine.zero_stage=0``).
    schedule : {"cosine", "mae", "dino", "simmim"}
        Form of the learning rate over the steps (``mrmfast/training/schedules.py``); the others are published codes'.
    warmup : float
        Share of all steps with a linearly rising rate [ours].
    final : float
        Last rate as a share of `lr` [ours].
    """

    lr: Annotated[NonNegative, Le(1e3)] = 1e-3
    weight_decay: Annotated[NonNegative, Le(1e3)] = 0.05
    weight_decay_end: NonNegative | None = None
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: NonNegative = 1.0
    clip_by: Literal["all", "tensor"] = "all"
    schedule: ScheduleName = "cosine"
    warmup: Share = 0.05
    final: Share = 0.01


def build_optimiser(
    model: TrainableModule, config: OptimiserConfig, device: torch.device, *, flat_over: int | None = None
) -> torch.optim.AdamW:
    """Make one AdamW; parameters with weight decay come first, then those without.

    Parameters
    ----------
    model : TrainableModule
        Its ``decays``, ``no_weight_decay`` and ``trained_from`` make the groups.
    config : OptimiserConfig
    device : torch.device
    flat_over : int, optional
        Number of ranks: make it a :class:`FlatAdamW`, which averages gradients over them and clips. By default the
        optimiser is one for ZeRO to take apart.

    Notes
    -----
    AdamW without weight decay is Adam, so one fused optimiser serves a model whose parts are trained with either.
    """
    exempt = {id(p) for module in model.no_weight_decay() for p in module.parameters()}
    parts: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = id(parameter) not in exempt and model.decays(name, parameter)
            parts[not decays, model.trained_from(name)].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parts[key], "weight_decay": 0.0 if key[0] else config.weight_decay, "decays": not key[0]}
        | {"trained_from": key[1]}
        for key in sorted(parts)
    ]
    if flat_over is not None:
        clip_each = config.clip_by == "tensor"
        return FlatAdamW(
            groups, clip=config.clip, clip_each=clip_each, ranks=flat_over, lr=config.lr, betas=config.betas
        )
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=device.type == "cuda")


class Schedule:
    """Sets what a step needs in the groups of :func:`build_optimiser`.

    Everything is a pure function of the step and the config, so a resumed run needs no state of it, and a changed
    length, rate, weight decay or beta takes effect.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    config : OptimiserConfig
    steps : int
        Of the run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimiserConfig, steps: int) -> None:
        self.optimizer, self._config, self._steps = optimizer, config, steps
        # Loading a state replaces the groups, and an older state lacks what is read here.
        self._groups = [(group.get("decays", True), group.get("trained_from", 0.0)) for group in optimizer.param_groups]

    def step_update(self, step: int) -> None:
        """Prepare the groups for optimiser step number `step`, counted from 0."""
        config, steps = self._config, self._steps
        rate = config.lr * SCHEDULES[config.schedule](step, steps, config.warmup, config.final)
        decay = config.weight_decay
        if config.weight_decay_end is not None:
            decay = half_cosine(decay, config.weight_decay_end, step / steps)
        for group, (decays, start) in zip(self.optimizer.param_groups, self._groups, strict=True):
            group.update(lr=rate, weight_decay=decay if decays else 0.0, betas=config.betas)
            group["frozen"] = step < start * steps
