"""Communication between ranks that gradients flow through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Let this rank compute as if there were no other: trial passes differ in number between ranks."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world_size() -> int:
    """Return the number of ranks; 1 without a process group, and inside :func:`alone`."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """Return the number of this rank; 0 without a process group, and inside :func:`alone`."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def all_gather(x_BD: Tensor) -> Tensor:
    """Stack the tensors of all ranks, in the order of ranks: (B, ...) to (ranks * B, ...).

    The backward pass adds up, for this rank's part, the gradients of every rank. With losses that each rank averages
    over its own samples, and gradients that the engine averages over ranks, the result is the gradient of the loss of
    the whole batch.

    Parameters
    ----------
    x_BD : Tensor
        Of one shape on all ranks.
    """
    if world_size() == 1:
        return x_BD
    gathered: Tensor = _AllGather.apply(x_BD.contiguous())
    return gathered


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_BD)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # gloo has no reduce-scatter: all ranks add up everything, and keep their part.
        (total,) = (gradient.contiguous().clone() for gradient in gradients)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
