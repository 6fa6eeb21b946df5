"""An exponential moving average of a module: the teacher of methods that distil from themselves."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """Exponential moving average of a module, in float32 for every precision of training.

    In bfloat16 an update of less than 0.4 % of a weight is rounded away. The copy takes whole parameters, so an
    objective that has one sets ``max_zero_stage = 2``.

    Parameters
    ----------
    module : Module
        What is followed; copied, not kept.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = copy.deepcopy(module).requires_grad_(False)
        for parameter in self.module.parameters():
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))

    def forward(self, *inputs: Any) -> Any:
        """Run the copy, without gradients."""
        with torch.no_grad():
            return self.module(*inputs)

    @torch.no_grad()
    def update(self, module: nn.Module, momentum: float) -> None:
        """Move the copy: ``copy = momentum * copy + (1 - momentum) * module``.

        Parameters
        ----------
        module : Module
            With the parameters that were copied.
        momentum : float
            0 to 1; 1 leaves the copy where it is.
        """
        for mean, value in zip(self.module.parameters(), module.parameters(), strict=True):
            mean.lerp_(value.to(mean.dtype), 1 - momentum)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMA:
        """Follow the model to a device, not to a narrower precision (``.bfloat16()`` of the whole model)."""
        applied: EMA = super()._apply(never_narrower(fn), recurse)
        return applied


def never_narrower(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return `fn`, what a module does to its tensors, without its casts to fewer bytes."""

    def widest(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        if tensor.is_floating_point() and moved.dtype.itemsize < tensor.dtype.itemsize:
            return tensor.to(moved.device)
        return moved

    return widest


def rising_momentum(first: float, progress: float) -> float:
    """Return the momentum at a share of the run: from `first` to 1 on half a cosine (BYOL, DINO, MoCo v3)."""
    return 1 - 0.5 * (1 + math.cos(math.pi * progress)) * (1 - first)
