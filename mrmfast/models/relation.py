"""Relation attention as modules: the self relation inside a block, the cross relation between two modalities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mrmfast.ops.relation_masking import relation_attention

# Where relation blocks keep their residual connections (method page, encoders): around self and cross relations,
# around cross relations only, or around neither. The feed-forward sublayer, which the equations leave out, has its own.
Residual = Literal["all", "cross", "none"]


@dataclass(frozen=True)
class Branches:
    """Tokens of the intact and of the masked branch.

    Attributes
    ----------
    intact, masked : Tensor, (B, N, D)
        The same object while nothing has been masked yet: then the first relation computes Q, K, V and R once for both.
    """

    intact: Tensor
    masked: Tensor

    @property
    def shared(self) -> bool:
        """Whether both branches still hold the same tokens."""
        return self.intact is self.masked

    @property
    def copies(self) -> int:
        """How often :meth:`batched` shows a layer each sample."""
        return 1 if self.shared else 2

    def batched(self, layer: Callable[[Tensor], Tensor]) -> Branches:
        """Apply a layer with shared weights to both branches in one pass."""
        if self.shared:
            same = layer(self.intact)
            return Branches(same, same)
        intact, masked = layer(torch.cat([self.intact, self.masked])).chunk(2)
        return Branches(intact, masked)

    def __add__(self, other: Branches) -> Branches:
        return Branches(self.intact + other.intact, self.masked + other.masked)


def split_heads(x_BND: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, H, N, d)."""
    return x_BND.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x_BHNd: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, D)."""
    return x_BHNd.transpose(1, 2).flatten(2)


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
    q, k, v = ([split_heads(x, heads) for x in (b.intact, b.masked)] for b in (query, key, value))
    if query.shared and key.shared and value.shared:
        intact, masked = relation_attention(q[0], k[0], v[0], ratio)
    else:
        intact, _ = relation_attention(q[0], k[0], v[0], ratio, masked=False)
        _, masked = relation_attention(q[1], k[1], v[1], ratio, intact=False)
    assert intact is not None and masked is not None
    return Branches(join_heads(intact), join_heads(masked))


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
    intact = qkv.intact.chunk(3, -1)
    masked = intact if qkv.shared else qkv.masked.chunk(3, -1)
    query, key, value = (Branches(i, m) for i, m in zip(intact, masked, strict=True))
    related = attend(query, key, value, attn.num_heads, ratio).batched(attn.proj).batched(block.ls1)  # type: ignore[arg-type]
    return tokens + related if residual == "all" else related
