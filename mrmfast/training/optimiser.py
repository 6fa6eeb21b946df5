"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le, Lt
from pydantic import AllowInfNan
from timm.scheduler import CosineLRScheduler
from torch import nn

from mrmfast.config import NonNegative, Share
from mrmfast.objectives.base import TrainableModule
from mrmfast.training.flat_adamw import FlatAdamW

Beta = Annotated[float, AllowInfNan(False), Ge(0), Lt(1)]


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW and its schedule.

    Attributes
    ----------
    lr : float
        Peak learning rate of both groups (paper: 1e-3).
    weight_decay : float
        Of matrices [ours]; vectors have none, nor has what an objective exempts.
    betas : tuple of two floats
        Decay rates of AdamW's running means of the gradient and of its square.
    clip : float
        Largest gradient norm; 0 turns clipping off.
    warmup : float
        Share of all steps with a linearly rising rate [ours].
    final : float
        Rate at the end of the cosine, as a share of `lr` [ours].
    """

    lr: Annotated[NonNegative, Le(1e3)] = 1e-3
    weight_decay: Annotated[NonNegative, Le(1e3)] = 0.05
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: NonNegative = 1.0
    warmup: Share = 0.05
    final: Share = 0.01


def build_optimiser(
    model: TrainableModule, config: OptimiserConfig, device: torch.device, *, flat_over: int | None = None
) -> torch.optim.AdamW:
    """Make one AdamW with two groups: matrices with weight decay; vectors and ``no_weight_decay()`` without.

    Parameters
    ----------
    model : TrainableModule
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
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        # timm counts the class token and the positions among the vectors, for every shape.
        vector = parameter.ndim < 2 or name.endswith(("cls_token", "pos_embed"))
        if parameter.requires_grad:
            (without if vector or id(parameter) in exempt else with_decay).append(parameter)
    groups = [
        {"params": with_decay, "weight_decay": config.weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]
    if flat_over is not None:
        return FlatAdamW(groups, clip=config.clip, ranks=flat_over, lr=config.lr, betas=config.betas)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=device.type == "cuda")


def reapply(optimiser: torch.optim.Optimizer, config: OptimiserConfig) -> None:
    """Give the groups of :func:`build_optimiser` the options of the config; a loaded state replaces them."""
    for group, decay in zip(optimiser.param_groups, (config.weight_decay, 0.0), strict=True):
        group.update(weight_decay=decay, betas=config.betas)


def build_schedule(optimiser: torch.optim.Optimizer, config: OptimiserConfig, steps: int) -> CosineLRScheduler:
    """Make the learning-rate schedule: linear warm-up, then cosine.

    ``step_update(n)`` sets the rate of optimiser step n (counted from 0) as a pure function of n, so a resumed run
    needs no state of it, and a changed length or rate takes effect.
    """
    warmup = max(1, round(config.warmup * steps))
    return CosineLRScheduler(
        optimiser,
        t_initial=max(1, steps - warmup),
        lr_min=config.lr * config.final,
        warmup_t=warmup,
        warmup_lr_init=config.lr / warmup,  # the first step is a step, not a pause
        warmup_prefix=True,
        t_in_epochs=False,
    )
