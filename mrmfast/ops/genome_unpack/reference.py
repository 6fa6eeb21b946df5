"""Unpack genotypes (2 bits), binary features (1 bit) and scores (float32) on the device that holds them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrmfast.batch import ModalitySpec

MISSING_GENOTYPE = 3


def unpack_genome(
    packed: Sequence[Tensor], present: Tensor, modalities: Sequence[ModalitySpec], fill: Tensor
) -> tuple[Tensor, Tensor]:
    """Join packed modalities to the genome vector x_G.

    Parameters
    ----------
    packed : sequence of Tensor, each (B, packed width)
        uint8 for genotype and binary, float32 or float16 for float.
    present : Tensor, bool, (B, modalities)
        Which participants have which modality.
    modalities : sequence of ModalitySpec
        As in :class:`mrmfast.batch.GenomeSpec`.
    fill : Tensor, (F,)
        Input value of what is missing.

    Returns
    -------
    x_BF : Tensor, float32, (B, F)
        Copies (0, 1, 2), bits and standardised scores, missing ones filled.
    observed_BF : Tensor, bool, (B, F)
        False where the value was filled; such features carry no loss.

    Notes
    -----
    Layout: ``docs/formats.md``, genetics.
    """
    values, observed = [], []
    for number, (part, (_, encoding, n_features)) in enumerate(zip(packed, modalities, strict=True)):
        if encoding == "float":
            value = part.float()
            known = ~torch.isnan(part)
        elif encoding == "genotype":
            shifts = torch.arange(0, 8, 2, device=part.device, dtype=torch.uint8)
            code = ((part[:, :, None] >> shifts) & 3).flatten(1)[:, :n_features]
            value, known = code.float(), code != MISSING_GENOTYPE
        else:
            shifts = torch.arange(8, device=part.device, dtype=torch.uint8)
            value = ((part[:, :, None] >> shifts) & 1).flatten(1)[:, :n_features].float()
            known = torch.ones_like(value, dtype=torch.bool)
        values.append(value)
        observed.append(known & present[:, number, None])
    x_BF, observed_BF = torch.cat(values, 1), torch.cat(observed, 1)
    return torch.where(observed_BF, x_BF, fill), observed_BF
