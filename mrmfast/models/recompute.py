"""Activation checkpointing: keep a layer's inputs, run it again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


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
    if enabled and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)
    return layer(*inputs)
