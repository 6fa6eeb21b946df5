"""Centres of a teacher's outputs (DINO; Caron et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mrmfast.models.ema import never_narrower
from mrmfast.objectives.base import StepInfo
from mrmfast.objectives.collectives import world_size


class Centre(nn.Module):
    """Moving average of the teacher's mean output, in float32 for every precision of training.

    Passes collect means; the average moves after the optimiser step, by the mean of all passes and ranks.

    Parameters
    ----------
    classes : int
    """

    mean: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes))
        self._collected: list[Tensor] = []
        self._step: tuple[int, int] | None = None

    def sharpen(self, logits: Tensor, temperature: float) -> Tensor:
        """Return the teacher's probabilities: softmax((logits - mean) / temperature) over the last axis."""
        return ((logits - self.mean) / temperature).softmax(-1)

    def collect(self, logits: Tensor, info: StepInfo) -> None:
        """Remember the mean of a pass for :meth:`update` of the same step; other steps' (trial passes) are dropped."""
        step = (info.step, info.total_steps)
        if step != self._step:
            self._collected, self._step = [], step
        self._collected.append(logits.detach().flatten(0, -2).mean(0))

    @torch.no_grad()
    def update(self, momentum: float, info: StepInfo) -> None:
        """Move the average: ``mean = momentum * mean + (1 - momentum) * collected``; call on every rank."""
        if self._step != (info.step, info.total_steps):
            return
        mean = torch.stack(self._collected).mean(0).to(self.mean.dtype)
        if world_size() > 1:
            dist.all_reduce(mean)
            mean /= world_size()
        self.mean.lerp_(mean, 1 - momentum)
        self._collected, self._step = [], None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Centre:
        applied: Centre = super()._apply(never_narrower(fn), recurse)
        return applied
