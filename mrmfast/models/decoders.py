"""Decoders that exist in pre-training only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mrmfast.models.activation_checkpointing import recomputed
from mrmfast.models.attention import pack_attention
from mrmfast.models.genome_encoder import SNNLayer
from mrmfast.models.grouped_linear import GroupedLinearBack


class ImageDecoder(nn.Module):
    """h_I: a small transformer over image and genome tokens, read at the image positions (MAE; He et al. 2022).

    Parameters
    ----------
    encoder_width : int
        D of the tokens that come in.
    grid, patch : int
        Patches per side; pixels per side of a patch.
    width, depth, heads : int
        512, 8, 16 by default in the config.
    with_genome : bool
        Whether genome tokens will come in too.
    """

    positions: Tensor

    def __init__(
        self, encoder_width: int, grid: int, patch: int, width: int, depth: int, heads: int, *, with_genome: bool
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.embed_genome = nn.Linear(encoder_width, width) if with_genome else None
        # Fixed sine-cosine positions; the class token's is zero.
        sincos = build_sincos2d_pos_embed([grid, grid], dim=width)
        self.register_buffer("positions", nn.functional.pad(sincos, (0, 0, 1, 0)), persistent=False)
        self.blocks = nn.ModuleList(pack_attention(Block(width, heads, qkv_bias=True)) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, patch * patch * 3)
        self.checkpointing = False

    def forward(self, image_BND: Tensor, genome_BMD: Tensor | None) -> Tensor:
        """Decode z_I^F = concat(z_{I,M}, z_G) along tokens.

        Parameters
        ----------
        image_BND : Tensor, (B, 1 + grid^2, D)
        genome_BMD : Tensor or None, (B, M, D)

        Returns
        -------
        Tensor, (B, grid^2, patch * patch * 3)
            Normalised pixels in (row, column, channel) order.
        """
        x = self.embed(image_BND) + self.positions.to(image_BND.dtype)
        if genome_BMD is not None:
            assert self.embed_genome is not None
            x = torch.cat([x, self.embed_genome(genome_BMD)], 1)
        for block in self.blocks:
            x = recomputed(self.checkpointing, block, x)
        return self.head(self.norm(x[:, 1 : image_BND.shape[1]]))


class GenomeDecoder(nn.Module):
    """h_G: SNN layers over the genome tokens, then a Linear back per group.

    SNN layers act on each token alone, so image tokens in concat(z_{G,M}, z_I) could not reach the genome's; one
    transformer block over all tokens mixes them first. [ours]

    Parameters
    ----------
    encoder_width : int
        D of the tokens that come in.
    groups : sequence of int
        Features per genome token.
    width, layers, heads : int
    dropout : float
    """

    def __init__(
        self, encoder_width: int, groups: Sequence[int], width: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.embed_image = nn.Linear(encoder_width, width)
        self.mix = pack_attention(Block(width, heads, qkv_bias=True))
        self.layers = nn.ModuleList(SNNLayer(width, dropout) for _ in range(layers))
        self.head = GroupedLinearBack(groups, width)

    def forward(self, genome_BMD: Tensor, image_BND: Tensor) -> Tensor:
        """Decode z_G^F = concat(z_{G,M}, z_I): (B, M, D) and (B, N, D) to (B, F)."""
        x = torch.cat([self.embed(genome_BMD), self.embed_image(image_BND)], 1)
        x = self.mix(x)[:, : genome_BMD.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
