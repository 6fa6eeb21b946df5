"""AdamW whose groups can wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) that passes over groups with ``frozen=True``.

    Weights, moments and the count of steps of such a group stay as they are; a rate of 0 would count the steps.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the groups that are not frozen."""
        waiting = [p for group in self.param_groups if group.get("frozen") for p in group["params"]]
        gradients = [p.grad for p in waiting]
        for parameter in waiting:
            parameter.grad = None
        result = super().step(closure)
        for parameter, gradient in zip(waiting, gradients, strict=True):
            parameter.grad = gradient
        return result
