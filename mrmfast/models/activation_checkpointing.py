"""Activation checkpointing: keep a layer's inputs, run it again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mrmfast.ops.wide_products import wide_products

_observers: list[Callable[[Tensor], object]] = []


@contextmanager
def observe_recomputed(observer: Callable[[Tensor], object]) -> Iterator[None]:
    """Call `observer` with every tensor that :func:`recomputed` keeps for the backward pass, inside the block."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def recomputed(enabled: bool, layer: Callable[..., Any], *inputs: Any) -> Any:
    """Run a layer; when `enabled`, nothing that it computes on the way is kept for the backward pass.

    Parameters
    ----------
    enabled : bool
    layer : callable
        Draws the same random numbers when it runs again.
    inputs : Tensor or None

    Returns
    -------
    What the layer returns.

    Notes
    -----
    T. Chen et al. 2016, "Training deep nets with sublinear memory cost". Non-reentrant, so that ``torch.compile`` and
    ``torch.autograd.grad`` work with it.
    """

    def run(*inputs: Any) -> Any:
        # The backward pass runs it outside the objective's context.
        with wide_products(inputs[0]):
            return layer(*inputs)

    if enabled and torch.is_grad_enabled():
        for observer in _observers:
            for tensor in inputs:
                if isinstance(tensor, Tensor):
                    observer(tensor)
        return checkpoint(run, *inputs, use_reentrant=False)
    return layer(*inputs)
