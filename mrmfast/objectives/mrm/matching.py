"""Relation matching: the relations between samples should survive masking (docs/methods/mrm.md#relation-matching)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mrmfast.objectives.mrm.relation import Branches


def draw_pairs(samples: int, pairs: int, seed: int) -> Tensor:
    """Choose the b pairs that are matched: int64, (min(pairs, samples),), a function of the seed."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))[:pairs]


def pool(tokens: Branches, chosen: Tensor) -> Branches:
    """Mean over tokens of the chosen samples, in float32: Branches of (b, D) [ours]."""
    # The mean comes first: its gradient is one view over all tokens, that of a choice of samples a scatter into zeros.
    intact, masked = tokens.batched(lambda x: x.mean(1, dtype=torch.float32)).halves()
    return Branches.of(intact[chosen], masked[chosen])


def _cosine(a_bD: Tensor, b_bD: Tensor) -> Tensor:
    """Pairwise cosine similarity, (b, b)."""
    return normalize(a_bD, dim=-1) @ normalize(b_bD, dim=-1).T


def relation_matching(
    image: Branches, genome: Branches | None, stop_gradient: bool = False, known: Tensor | None = None
) -> dict[str, Tensor]:
    """Compute L_self and L_cross.

    Parameters
    ----------
    image, genome : Branches of (b, D)
        One pooled vector per sample and branch; genome is None when training on images alone.
    stop_gradient : bool
        Treat the intact branch as a constant [ours].
    known : Tensor of bool, (b,), optional
        Who has any genetics; by default everyone. R_GG and R_IG are compared among these alone, and b is their number
        there: the genome of the others is made of fill values, which carry no loss [ours].

    Returns
    -------
    dict
        ``self`` = 1/(2 b^2) sum_ij ((R_II - R_II,M)^2 + (R_GG - R_GG,M)^2) and, with a genome, ``cross`` =
        1/b^2 sum_ij (R_IG - R_IG,M)^2; scalars in [0, 4]. Without a genome the R_GG term is absent.
    """

    def change(a: Branches, b: Branches, among: Tensor | None = None) -> Tensor:
        (a_intact, a_masked), (b_intact, b_masked) = a.halves(), b.halves()
        intact = _cosine(a_intact, b_intact)
        difference = (intact.detach() if stop_gradient else intact) - _cosine(a_masked, b_masked)
        if among is None:
            return difference.square().mean()
        # No choice of rows, which would have to ask the device for their number. Where all are known the mean is
        # multiplied by exactly 1.
        kept = torch.where(among[:, None] & among, difference, 0.0).square().mean()
        return kept * (among.numel() / among.sum().clamp(min=1)).square()

    if genome is None:
        return {"self": change(image, image) / 2}
    return {"self": (change(image, image) + change(genome, genome, known)) / 2, "cross": change(image, genome, known)}
