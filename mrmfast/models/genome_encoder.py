"""Parts of a genome encoder: grouped tokens and self-normalising layers (SNN; Klambauer et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mrmfast.batch import GenomeSpec
from mrmfast.models.grouped_linear import GroupedLinear


@dataclass(frozen=True)
class GenomeInput:
    """What an objective builds its genome encoder from.

    Attributes
    ----------
    spec : GenomeSpec
    layers : int
        SNN layers after the tokens.
    alpha_dropout : float
    """

    spec: GenomeSpec
    layers: int
    alpha_dropout: float


class PairedAlphaDropout(nn.AlphaDropout):
    """AlphaDropout that drops the same units in both branches of a sample.

    With a mask of its own each branch would differ from the other by noise, and relation matching, which compares the
    two, would measure dropout rather than masking. [ours]
    """

    def forward(self, x: Tensor, copies: int = 1) -> Tensor:
        """Drop units of (copies * B, ...), where the batch is `copies` consecutive copies of the samples."""
        if not self.training or self.p == 0:
            return x
        # Klambauer et al. 2017, section 3: dropped units take SELU's negative limit, then an affine map restores mean
        # and variance.
        limit = -1.7580993408473766
        keep = 1 - self.p
        scale = (keep + limit**2 * keep * self.p) ** -0.5
        kept = torch.rand(len(x) // copies, *x.shape[1:], device=x.device) < keep
        kept = kept.repeat(copies, *[1] * (x.ndim - 1))
        return torch.where(kept, x, limit) * scale - scale * limit * self.p


class SNNLayer(nn.Module):
    """Linear, SELU, AlphaDropout with LeCun-normal weights (paper, encoders), on each token alike.

    Parameters
    ----------
    width : int
        D.
    dropout : float
        AlphaDropout probability.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.normal_(self.linear.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.linear.bias)
        self.dropout = PairedAlphaDropout(dropout)

    def forward(self, x_BMD: Tensor, copies: int = 1) -> Tensor:
        """(copies * B, M, D) to the same; see :class:`PairedAlphaDropout`."""
        return self.dropout(nn.functional.selu(self.linear(x_BMD)), copies)


class GenomeTokens(nn.Module):
    """One SNN layer per feature group, plus a learned token embedding (docs/methods/mrm.md#encoders).

    Parameters
    ----------
    groups : sequence of int
        Features per token.
    width : int
    dropout : float
    with_mask_token : bool
        Whether a learned token can take the place of a group of features.
    """

    mask_token: nn.Parameter | None

    def __init__(self, groups: Sequence[int], width: int, dropout: float, with_mask_token: bool = False) -> None:
        super().__init__()
        self.linear = GroupedLinear(groups, width)
        self.embedding = nn.Parameter(torch.randn(len(groups), width) * 0.02)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02) if with_mask_token else None
        self.dropout = PairedAlphaDropout(dropout)

    def forward(self, x_BF: Tensor, masked_BM: Tensor | None = None) -> Tensor:
        """(B, F) features to (B, M, D) tokens; the mask token takes the place of those in `masked_BM`."""
        tokens: Tensor = self.dropout(nn.functional.selu(self.linear(x_BF)))
        if masked_BM is not None:
            assert self.mask_token is not None
            tokens = torch.where(masked_BM[..., None], self.mask_token, tokens)
        return tokens + self.embedding
