"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from mrmfast.objectives.base import Objective
from mrmfast.training.flat_adamw import FlatAdamW


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW and its schedule.

    Attributes
    ----------
    lr : float
        Peak learning rate of both groups (paper: 1e-3).
    weight_decay : float
        Of the ViT's matrices [ours]; vectors and the SNN side have none.
    betas : tuple of two floats
        Decay rates of AdamW's running means of the gradient and of its square.
    clip : float
        Largest gradient norm; 0 turns clipping off.
    warmup : float
        Share of all steps with a linearly rising rate [ours].
    final : float
        Rate at the end of the cosine, as a share of `lr` [ours].
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    warmup: float = 0.05
    final: float = 0.01


def build_optimiser(
    objective: Objective, config: OptimiserConfig, device: torch.device, *, flat_over: int | None = None
) -> torch.optim.AdamW:
    """Make one AdamW with two groups.

    Parameters
    ----------
    objective : Objective
    config : OptimiserConfig
    device : torch.device
    flat_over : int, optional
        Number of ranks: make it a :class:`FlatAdamW`, which averages gradients over them and clips. By default the
        optimiser is one for ZeRO to take apart.

    Notes
    -----
    The paper trains the ViT with AdamW and the SNN with Adam, both at the same rate. Adam without weight decay is
    AdamW with weight decay 0, so one fused optimiser serves both: the SNN's parameters are in the group without decay.
    """
    assert isinstance(objective, nn.Module)
    snn = {id(p) for module in objective.without_decay() for p in module.parameters()}
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for name, parameter in objective.named_parameters():
        # timm counts the class token and the positions among the vectors, whatever their shape.
        vector = parameter.ndim < 2 or name.endswith(("cls_token", "pos_embed"))
        (without if vector or id(parameter) in snn else with_decay).append(parameter)
    groups = [
        {"params": with_decay, "weight_decay": config.weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]
    if flat_over is not None:
        return FlatAdamW(groups, clip=config.clip, ranks=flat_over, lr=config.lr, betas=config.betas)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=device.type == "cuda")


def reapply(optimiser: torch.optim.Optimizer, config: OptimiserConfig) -> None:
    """Give the groups of :func:`build_optimiser` what the config says: a state brings the options it was saved with."""
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
