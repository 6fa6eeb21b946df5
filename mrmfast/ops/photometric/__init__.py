"""Changes of colour of a view, on the device that holds it: the one dispatch point."""

from __future__ import annotations

import torch
from torch import Tensor

from mrmfast.batch import PIXEL_MEAN, PIXEL_STD, Photometric
from mrmfast.ops.photometric import reference

__all__ = ["apply"]


@torch.no_grad()
def apply(view_BCHW: Tensor, parameters_BK: Tensor | None, recipe: Photometric | None) -> Tensor:
    """Change the colours of a view with the parameters that the loader drew.

    Parameters
    ----------
    view_BCHW : Tensor, uint8 or float32, (B, 3, S, S)
        Bytes, or normalised by ``PIXEL_MEAN`` and ``PIXEL_STD`` of :mod:`mrmfast.batch`.
    parameters_BK : Tensor or None, float32, (B, K)
        ``Batch.photometric`` of the view, on the same device; None: nothing is done.
    recipe : Photometric or None
        The view's, from which the parameters were drawn; None: nothing is done.

    Returns
    -------
    Tensor
        Type, shape, device and memory order of `view_BCHW`. Bytes are rounded once, at the end. CPU and GPU give the
        same within 2/255 (``README.md``).
    """
    if parameters_BK is None or recipe is None:
        return view_BCHW
    layout = (
        torch.channels_last if view_BCHW.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    if view_BCHW.dtype == torch.uint8:
        changed = reference.photometric(view_BCHW.float(), parameters_BK, recipe).round().to(torch.uint8)
    else:
        mean, std = (
            255 * torch.tensor(values, device=view_BCHW.device)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD)
        )
        changed = (reference.photometric(view_BCHW * std + mean, parameters_BK, recipe) - mean) / std
    return changed.contiguous(memory_format=layout)
