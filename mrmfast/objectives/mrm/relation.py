"""Relation attention as modules: the self relation inside a block, the cross relation between two modalities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mrmfast.objectives.mrm.config import Residual
from mrmfast.ops.relation_masking import masked_count, relation_attention


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
        one, two = (self, other) if self.copies == 1 else (other, self)
        return Branches((two.stacked.unflatten(0, (2, -1)) + one.stacked).flatten(0, 1), self.samples)


def split_heads(x_BND: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, H, N, d)."""
    return x_BND.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(query: Branches, key: Branches, value: Branches, heads: int, ratio: float) -> Branches:
    """Relate both branches: R V on the intact one, R^M V on the masked one (method page, relation masking).

    Parameters
    ----------
    query : Branches of (B, N, D)
    key, value : Branches of (B, M, D)
    heads : int
    ratio : float
        Masking ratio of the querying modality.
    """
    if query.copies == key.copies == 1:
        q, k, v = (split_heads(branches.stacked, heads) for branches in (query, key, value))
        some = masked_count(ratio, k.shape[2]) > 0  # else the branches stay the same
        outputs = relation_attention(q, k, v, ratio, masked=some)
    else:
        (q, q_masked), (k, k_masked), (v, v_masked) = (
            [split_heads(half, heads) for half in branches.halves()] for branches in (query, key, value)
        )
        intact, _ = relation_attention(q, k, v, ratio, masked=False)
        _, masked = relation_attention(q_masked, k_masked, v_masked, ratio, intact=False)
        outputs = (intact, masked)
    # One copy joins the heads and stacks the branches.
    stacked = torch.cat([output.transpose(1, 2) for output in outputs if output is not None])
    return Branches(stacked.flatten(2), query.samples)


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
        context = context.batched(self.norm_context)
        query = tokens.batched(self.norm_query).batched(self.query)
        related = attend(query, context.batched(self.key), context.batched(self.value), self.heads, ratio)
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
    qkv = tokens.batched(block.norm1).batched(attn.qkv)  # type: ignore[arg-type]
    query, key, value = (Branches(part, tokens.samples) for part in qkv.stacked.chunk(3, -1))
    related = attend(query, key, value, attn.num_heads, ratio).batched(attn.proj).batched(block.ls1)  # type: ignore[arg-type]
    return tokens + related if residual == "all" else related
