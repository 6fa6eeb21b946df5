"""Fusion of two streams of tokens by co-attention, in post-norm layers (M3AE; Chen et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mrmfast.models.activation_checkpointing import recomputed

# BERT's.
EPSILON = 1e-12


class PostNormAttention(nn.Module):
    """Attention, projection, sum with the queries, norm.

    Parameters
    ----------
    width, heads : int
    dropout : float
        Of attention weights and of what is added.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.p = heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.proj, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, context_BKD: Tensor, known_BK: Tensor | None) -> Tensor:
        """Attend to the tokens of a context that are known, all by default: (B, N, D) to the same."""
        inputs = (self.query(x_BND), self.key(context_BKD), self.value(context_BKD))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in inputs)
        mask = None if known_BK is None else known_BK[:, None, None]
        related = scaled_dot_product_attention(query, key, value, mask, dropout_p=self.p if self.training else 0.0)
        out: Tensor = self.norm(x_BND + self.dropout(self.proj(related.transpose(1, 2).flatten(2))))
        return out


class PostNormLayer(nn.Module):
    """BERT's layer: self-attention, with `cross` attention to another stream, feed-forward part.

    Parameters
    ----------
    width, heads : int
    dropout : float
    cross : bool
    """

    def __init__(self, width: int, heads: int, dropout: float, cross: bool = True) -> None:
        super().__init__()
        self.attention = PostNormAttention(width, heads, dropout)
        self.cross = PostNormAttention(width, heads, dropout) if cross else None
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BND: Tensor, known_BN: Tensor | None, other_BKD: Tensor | None = None, known_BK: Tensor | None = None
    ) -> Tensor:
        """Update one stream, (B, N, D); `known`: which tokens of each stream are attended to, all by default."""
        x_BND = self.attention(x_BND, x_BND, known_BN)
        if self.cross is not None:
            assert other_BKD is not None
            x_BND = self.cross(x_BND, other_BKD, known_BK)
        out: Tensor = self.norm(x_BND + self.dropout(self.down(nn.functional.gelu(self.up(x_BND)))))
        return out


class CoAttention(nn.Module):
    """Two streams, each updated by layers of its own from the old pair.

    Parameters
    ----------
    widths : (int, int)
        Of the tokens that come in: the second modality's, the image's.
    width, heads, layers : int
    dropout : float
    """

    def __init__(self, widths: tuple[int, int], width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.project = nn.ModuleList(nn.Linear(size, width) for size in widths)
        self.types = nn.Embedding(2, width)
        self.second = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(layers))
        self.image = nn.ModuleList(PostNormLayer(width, heads, dropout) for _ in range(layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.types.weight, std=0.02)
        self.activation_checkpointing = False

    def forward(
        self, second_BMD: Tensor, known_BM: Tensor | None, image_BND: Tensor, layers: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fuse the streams.

        Parameters
        ----------
        second_BMD : Tensor, (B, M, width of the second modality)
        known_BM : Tensor of bool, (B, M), optional
            Tokens of the second modality that are attended to; all by default.
        image_BND : Tensor, (B, N, width of the image)
        layers : int, optional
            How many layers to run; all by default.

        Returns
        -------
        Tensor, (B, M, width), and Tensor, (B, N, width)
        """
        x, y = (project(tokens) for project, tokens in zip(self.project, (second_BMD, image_BND), strict=True))
        of_second, of_image = self.types(torch.arange(2, device=x.device))
        x, y = x + of_second, y + of_image
        for second, image in list(zip(self.second, self.image, strict=True))[:layers]:
            # Both read the old pair.
            x, y = (
                recomputed(self.activation_checkpointing, second, x, known_BM, y, None),
                recomputed(self.activation_checkpointing, image, y, None, x, known_BM),
            )
        return x, y
