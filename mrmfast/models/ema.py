"""An exponential moving average of a module: the teacher of methods that distil from themselves."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from mrmfast.models.precision import KeepsPrecision


class EMA(KeepsPrecision):
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
        self.module = copy.deepcopy(module).requires_grad_(False)
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
