"""Modules that stay in float32 while the model around them is trained in bfloat16."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class KeepsPrecision(nn.Module):
    """A module whose tensors are never narrowed."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeepsPrecision:
        """Follow the model to a device, not to a narrower precision (``.bfloat16()`` of the whole model)."""

        def widest(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.is_floating_point() and moved.dtype.itemsize < tensor.dtype.itemsize:
                return tensor.to(moved.device)
            return moved

        applied: KeepsPrecision = super()._apply(widest, recurse)
        return applied
