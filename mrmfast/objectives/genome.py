"""Genetics of a batch as the comparison methods use them: values per modality, and the error of predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from mrmfast.batch import GenomeSpec, ModalitySpec
from mrmfast.ops.genome_unpack import unpack_genome

# Numbers that a decoder predicts per feature: logits of 0, 1 and 2 copies, one logit of a bit, one score.
OUTPUTS = {"genotype": 3, "binary": 1, "float": 1}


class GenomeReader(nn.Module):
    """Packed genetics to values.

    Parameters
    ----------
    spec : GenomeSpec
    """

    fill: Tensor

    def __init__(self, spec: GenomeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("fill", spec.fill, persistent=False)

    def forward(self, packed: tuple[Tensor, ...], present: Tensor) -> tuple[Tensor, Tensor]:
        """Return the genome vector, missing values filled, and what of it was observed: both (B, F)."""
        x_BF, observed_BF = unpack_genome(packed, present, self.spec.modalities, self.fill.float())
        return x_BF, observed_BF


def modality_slices(modalities: Sequence[ModalitySpec]) -> list[slice]:
    """Return which features of the genome vector each modality has."""
    ends = torch.tensor([count for _, _, count in modalities]).cumsum(0).tolist()
    return [slice(end - count, end) for end, (_, _, count) in zip(ends, modalities, strict=True)]


def feature_outputs(modalities: Sequence[ModalitySpec]) -> list[int]:
    """Return how many numbers are predicted for each feature (see :data:`OUTPUTS`)."""
    return [OUTPUTS[encoding] for _, encoding, count in modalities for _ in range(count)]


def genome_errors(
    predicted_BO: Tensor, x_BF: Tensor, observed_BF: Tensor, modalities: Sequence[ModalitySpec]
) -> list[Tensor]:
    """Error of each feature, per modality.

    Parameters
    ----------
    predicted_BO : Tensor, (B, sum of feature_outputs)
        Three logits per genotype, one logit per bit, one number per score, in the order of the features.
    x_BF : Tensor, (B, F)
    observed_BF : Tensor of bool, (B, F)
    modalities : sequence of ModalitySpec

    Returns
    -------
    list of Tensor, (B, features of the modality)
        Cross-entropy of genotypes over {0, 1, 2} (uniform predictions give ln 3), binary cross-entropy of bits (0
        logits give ln 2), squared error of scores; 0 where nothing was observed. float32 or wider.
    """
    predicted_BO = predicted_BO.to(torch.promote_types(predicted_BO.dtype, torch.float32))
    errors, start = [], 0
    for (_, encoding, count), features in zip(modalities, modality_slices(modalities), strict=True):
        stop = start + count * OUTPUTS[encoding]
        predicted, observed = predicted_BO[:, start:stop], observed_BF[:, features]
        # A fill value may be no class: 0 takes its place.
        target = torch.where(observed, x_BF[:, features], 0.0).to(predicted.dtype)
        if encoding == "genotype":
            logits = predicted.unflatten(1, (count, 3)).flatten(0, 1)
            error = cross_entropy(logits, target.flatten().long(), reduction="none").view_as(target)
        elif encoding == "binary":
            error = binary_cross_entropy_with_logits(predicted, target, reduction="none")
        else:
            error = (predicted - target).square()
        errors.append(error * observed)
        start = stop
    return errors
