"""GK-Refine: weights of the distillation losses by how far their gradients agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def gradient_cosines(losses: Sequence[Tensor], feature_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the gradients of losses with respect to the student's feature of the batch.

    ``torch.autograd.grad`` stops at the feature: no pass through the encoder, and nothing is added to ``.grad``.

    Parameters
    ----------
    losses : sequence of Tensor
        L of them; the cross-entropy last.
    feature_BD : Tensor, (B, D)
        A part of the graph of each loss.

    Returns
    -------
    Tensor, (L, L)
        Cosines.
    Tensor, (L,)
        Norms.
    """
    gradients = [torch.autograd.grad(loss, feature_BD, retain_graph=True)[0].flatten() for loss in losses]
    stacked = torch.stack(gradients)
    unit = normalize(stacked, dim=1)
    return unit @ unit.T, stacked.norm(dim=1)


def refinement_weights(cosines: Tensor, as_published: bool) -> Tensor:
    """Return the weight of each loss, the cross-entropy's (which is not used) last.

    Parameters
    ----------
    cosines : Tensor, (L, L)
    as_published : bool
        L - 1 times the sum of a row: not normalised, and it may be negative. Otherwise the mean of the row, at least 0,
        so that agreeing losses get up to 1, and a loss against most others gets none.
    """
    if as_published:
        return (len(cosines) - 1) * cosines.sum(1)
    return cosines.mean(1).clamp(min=0)
