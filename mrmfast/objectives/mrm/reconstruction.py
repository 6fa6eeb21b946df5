"""Reconstruction error of the genome (docs/methods/mrm.md#reconstruction): a mean over observed features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mrmfast.batch import ModalitySpec


def genome_error(
    predicted_BF: Tensor, x_BF: Tensor, observed_BF: Tensor, modalities: Sequence[ModalitySpec], bce: bool = False
) -> Tensor:
    """Mean error over observed features; a missing one carries no loss [ours].

    Parameters
    ----------
    predicted_BF, x_BF : Tensor, (B, F)
    observed_BF : Tensor, bool, (B, F)
    modalities : sequence of ModalitySpec
        As in :class:`mrmfast.batch.GenomeSpec`.
    bce : bool
        Take predictions of binary features as logits, and their cross-entropy instead of the squared error.

    Returns
    -------
    Tensor, scalar
        0 where nothing was observed.
    """
    predicted_BF = predicted_BF.float()
    error_BF = (predicted_BF - x_BF).square()
    if bce:
        parts, start = [], 0
        for _, encoding, count in modalities:
            features = slice(start, start + count)
            part = error_BF[:, features]
            if encoding == "binary":
                part = binary_cross_entropy_with_logits(predicted_BF[:, features], x_BF[:, features], reduction="none")
            parts.append(part)
            start += count
        error_BF = torch.cat(parts, 1)
    return (error_BF * observed_BF).sum() / observed_BF.sum().clamp(min=1)
