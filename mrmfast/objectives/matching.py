"""Relation matching: the relations between samples should survive masking (method page, relation matching)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from mrmfast.models.relation import Branches


def _cosine(a_bD: Tensor, b_bD: Tensor) -> Tensor:
    """Pairwise cosine similarity, (b, b)."""
    return normalize(a_bD, dim=-1) @ normalize(b_bD, dim=-1).T


def relation_matching(image: Branches, genome: Branches | None) -> dict[str, Tensor]:
    """Compute L_self and L_cross.

    Parameters
    ----------
    image, genome : Branches of (b, D)
        One pooled vector per sample and branch; genome is None when training on images alone.

    Returns
    -------
    dict
        ``self`` = 1/(2 b^2) sum_ij ((R_II - R_II,M)^2 + (R_GG - R_GG,M)^2) and, with a genome, ``cross`` =
        1/b^2 sum_ij (R_IG - R_IG,M)^2; scalars in [0, 4]. Without a genome the R_GG term is absent.
    """
    image_self = (_cosine(image.intact, image.intact) - _cosine(image.masked, image.masked)).square().mean()
    if genome is None:
        return {"self": image_self / 2}
    genome_self = (_cosine(genome.intact, genome.intact) - _cosine(genome.masked, genome.masked)).square().mean()
    cross = (_cosine(image.intact, genome.intact) - _cosine(image.masked, genome.masked)).square().mean()
    return {"self": (image_self + genome_self) / 2, "cross": cross}
