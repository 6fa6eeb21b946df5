"""Relation attention as modules: the self relation inside a block, the cross relation between two modalities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mrmfast.objectives.mrm.config import Residual
from mrmfast.ops.relation_masking import masked_count, stacked_relation_attention


@dataclass(frozen=True)
class Branches:
    """Tokens of the intact and of the masked branch in one tensor, so that layers with shared weights run once.

    Attributes
    ----------
    stacked : Tensor, (B, ...) or (2 B, ...)
        (B, ...) while nothing has been masked: both branches hold the same, and the first relation computes Q, K, V
        and R once for both. Afterwards the samples of the intact branch, then those of the masked one.
    samples : int
        B.
    """

    stacked: Tensor
    samples: int

    @classmethod
    def of(cls, intact: Tensor, masked: Tensor) -> Branches:
        """Stack two branches, each (B, ...)."""
        return cls(torch.cat([intact, masked]), len(intact))

    @property
    def copies(self) -> int:
        """How often a layer sees each sample: 1 while both branches are the same, else 2."""
        return len(self.stacked) // self.samples

    @property
    def intact(self) -> Tensor:
        """Tokens of the intact branch, (B, ...)."""
        return self.halves()[0]

    @property
    def masked(self) -> Tensor:
        """Tokens of the masked branch, (B, ...)."""
        return self.halves()[1]

    def halves(self) -> tuple[Tensor, Tensor]:
        """Return intact and masked tokens as views; taken together, their gradients are joined by one copy."""
        if self.copies == 1:
            return self.stacked, self.stacked
        intact, masked = self.stacked.chunk(2)
        return intact, masked

    def batched(self, layer: Callable[[Tensor], Tensor]) -> Branches:
        """Apply a layer with shared weights to both branches in one pass."""
        return Branches(layer(self.stacked), self.samples)

    def __add__(self, other: Branches) -> Branches:
        if self.copies == other.copies:
            return Branches(self.stacked + other.stacked, self.samples)
        shared, split = (self, other) if self.copies == 1 else (other, self)
        return Branches((split.stacked.unflatten(0, (2, -1)) + shared.stacked).flatten(0, 1), self.samples)


def split_heads(x_BND: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, H, N, d)."""
    return x_BND.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(projections: Sequence[Tensor], samples: int, ratio: float) -> Branches:
    """Relate both branches: R V on the intact one, R^M V on the masked one (docs/methods/mrm.md#relation-masking).

    Parameters
    ----------
    projections : sequence of Tensor
        Heads split: q (S, H, N, d), k and v (S, H, M, d), or one (3, S, H, N, d) that packs them; S is B where both
        branches are the same, else 2 B.
    samples : int
        B.
    ratio : float
        Masking ratio of the querying modality.

    Returns
    -------
    Branches of (B or 2 B, N, D)
    """
    q, k = (projections[0][0], projections[0][1]) if len(projections) == 1 else projections[:2]
    if len(q) > samples or len(k) > samples:
        # One modality may still be shared by the branches where the other is not.
        projections = [torch.cat([x, x]) if x.ndim == 4 and len(x) == samples else x for x in projections]
        related = stacked_relation_attention(projections, ratio, "halves")
    else:
        masked = masked_count(ratio, k.shape[2]) > 0  # else the branches stay the same
        related = stacked_relation_attention(projections, ratio, "both" if masked else "intact")
    return Branches(related.transpose(1, 2).flatten(2), samples)


class CrossRelation(nn.Module):
    """Queries of one modality over keys and values of the other; exists in pre-training only.

    Parameters
    ----------
    width : int
        D.
    heads : int
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width, eps=1e-6)
        self.norm_context = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        for linear in (self.query, self.key, self.value, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    # Not forward(): ZeRO-3 hooks see only plain tensors, and the submodules below are called with those.
    def relate(self, tokens: Branches, context: Branches, ratio: float) -> Branches:
        """Relate tokens of one modality to those of the other, branch by branch.

        Parameters
        ----------
        tokens : Branches of (B, N, D)
        context : Branches of (B, M, D)
        ratio : float
            Masking ratio of the querying modality.
        """
        keys = self.norm_context(context.stacked)
        query, key, value = self.query(self.norm_query(tokens.stacked)), self.key(keys), self.value(keys)
        related = attend([split_heads(x, self.heads) for x in (query, key, value)], tokens.samples, ratio)
        return related.batched(self.proj)


def self_relation(block: nn.Module, tokens: Branches, ratio: float, residual: Residual) -> Branches:
    """Run the self relation of a pre-norm block on both branches.

    Parameters
    ----------
    block : Module
        With ``norm1``, ``attn`` (``qkv``, ``proj``, ``num_heads``) and ``ls1``, as timm's Block has them.
    tokens : Branches of (B, N, D)
    ratio : float
    residual : {"all", "cross", "none"}
        ``all`` adds the input, as a ViT block does; the others leave R V alone, as the paper's equations do.
    """
    attn: Any = block.attn
    qkv = tokens.batched(block.norm1).batched(attn.qkv).stacked  # type: ignore[arg-type]
    packed = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    related = attend([packed], tokens.samples, ratio).batched(attn.proj).batched(block.ls1)  # type: ignore[arg-type]
    return tokens + related if residual == "all" else related
