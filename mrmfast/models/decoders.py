"""Decoders that exist in pre-training only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from timm.layers import build_sincos2d_pos_embed, get_act_layer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mrmfast.errors import UserError
from mrmfast.models.activation_checkpointing import recomputed
from mrmfast.models.attention import pack_attention
from mrmfast.models.config import MOST_LAYERS, Heads, Layers, Width
from mrmfast.models.genome_encoder import SNNLayer
from mrmfast.models.grouped_linear import GroupedLinearBack
from mrmfast.models.image_encoder import ImageEncoder


def clip_options() -> dict[str, Any]:
    """Return what makes a timm block one of CLIP's: quick GELU, norms with eps 1e-5."""
    return {"act_layer": get_act_layer("quick_gelu"), "norm_layer": partial(nn.LayerNorm, eps=1e-5)}


@dataclass(frozen=True)
class ImageDecoderConfig:
    """Sizes of an image decoder.

    Attributes
    ----------
    width, depth, heads : int
        MAE's by default.
    """

    width: Width = 512
    depth: Layers = 8
    heads: Heads = 16

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise UserError(f"width={self.width}: must be a multiple of heads={self.heads} and of 4")


class ImageDecoder(nn.Module):
    """A small transformer over image and genome tokens, read at the image positions (MAE; He et al. 2022).

    Parameters
    ----------
    config : ImageDecoderConfig
    encoder : ImageEncoder
        Gives the width of the tokens that come in, and the patches that go out.
    with_genome : bool
        Whether genome tokens come in too.
    with_mask_token : bool
        Whether patches come in that the encoder has not seen: a learned token takes their place.
    positions : Tensor, (grid^2, width), optional
        Fixed positions of the patches; timm's sine-cosine table by default.
    width_in : int, optional
        Width of the tokens that come in; the encoder's by default.
    clip_blocks : bool
        Whether activations and norms are CLIP's (quick GELU, eps 1e-5), as in M3AE.
    """

    positions: Tensor
    mask_token: nn.Parameter | None

    def __init__(
        self,
        config: ImageDecoderConfig,
        encoder: ImageEncoder,
        *,
        with_genome: bool = False,
        with_mask_token: bool = False,
        positions: Tensor | None = None,
        width_in: int | None = None,
        clip_blocks: bool = False,
    ) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(width_in or encoder.width, width)
        self.embed_genome = nn.Linear(encoder.width, width) if with_genome else None
        # A mask token's standard deviation is MAE's.
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02) if with_mask_token else None
        if positions is None:
            positions = build_sincos2d_pos_embed([encoder.grid, encoder.grid], dim=width)
        # The class token's position is zero.
        self.register_buffer("positions", nn.functional.pad(positions, (0, 0, 1, 0)), persistent=False)
        options = clip_options() if clip_blocks else {}
        self.blocks = nn.ModuleList(
            pack_attention(Block(width, config.heads, qkv_bias=True, **options)) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-5 if clip_blocks else 1e-6)
        self.head = nn.Linear(width, encoder.patch * encoder.patch * 3)
        self.activation_checkpointing = False

    def forward(self, image_BND: Tensor, genome_BMD: Tensor | None = None, restore_BN: Tensor | None = None) -> Tensor:
        """Decode concat(image, genome) along tokens.

        Parameters
        ----------
        image_BND : Tensor, (B, 1 + grid^2, D), or (B, 1 + K, D)
            The class token first; with `restore_BN`, the K patches that the encoder has seen.
        genome_BMD : Tensor, (B, M, D), optional
        restore_BN : Tensor of int64, (B, grid^2), optional
            Where each patch lies among the K that came in and the mask tokens after them.

        Returns
        -------
        Tensor, (B, grid^2, patch * patch * 3)
            Normalised pixels in (row, column, channel) order.
        """
        x = self.embed(image_BND)
        if restore_BN is not None:
            x = self._restore(x, restore_BN)
        x = x + self.positions.to(image_BND.dtype)
        patches = x.shape[1]
        if genome_BMD is not None:
            assert self.embed_genome is not None
            x = torch.cat([x, self.embed_genome(genome_BMD)], 1)
        for block in self.blocks:
            x = recomputed(self.activation_checkpointing, block, x)
        return self.head(self.norm(x[:, 1:patches]))

    def _restore(self, x_BKW: Tensor, restore_BN: Tensor) -> Tensor:
        """Put patches where they were, mask tokens where there are none: (B, 1 + K, W) to (B, 1 + grid^2, W)."""
        assert self.mask_token is not None
        samples, seen = len(x_BKW), x_BKW.shape[1] - 1
        masks = self.mask_token.expand(samples, restore_BN.shape[1] - seen, -1)
        class_token, patches = x_BKW.split([1, seen], 1)
        patches = torch.cat([patches, masks], 1).gather(1, restore_BN[..., None].expand(-1, -1, x_BKW.shape[-1]))
        return torch.cat([class_token, patches], 1)


@dataclass(frozen=True)
class GenomeDecoderConfig:
    """Sizes of a genome decoder [ours].

    Attributes
    ----------
    width : int
        Width of its SNN layers.
    layers : int
        SNN layers.
    """

    width: Width = 256
    layers: Annotated[int, Ge(0), Le(MOST_LAYERS)] = 2


class GenomeDecoder(nn.Module):
    """h_G: SNN layers over the genome tokens, then a Linear back per group.

    SNN layers act on each token alone, so image tokens in concat(z_{G,M}, z_I) could not reach the genome's; one
    transformer block over all tokens mixes them first. [ours]

    Parameters
    ----------
    config : GenomeDecoderConfig
    encoder_width : int
        D of the tokens that come in.
    groups : sequence of int
        Features per genome token.
    dropout : float
    """

    def __init__(self, config: GenomeDecoderConfig, encoder_width: int, groups: Sequence[int], dropout: float) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(encoder_width, width)
        self.embed_image = nn.Linear(encoder_width, width)
        self.mix = pack_attention(Block(width, math.gcd(width, 4), qkv_bias=True))
        self.layers = nn.ModuleList(SNNLayer(width, dropout) for _ in range(config.layers))
        self.head = GroupedLinearBack(groups, width)

    def forward(self, genome_BMD: Tensor, image_BND: Tensor) -> Tensor:
        """Decode z_G^F = concat(z_{G,M}, z_I): (B, M, D) and (B, N, D) to (B, F)."""
        x = torch.cat([self.embed(genome_BMD), self.embed_image(image_BND)], 1)
        x = self.mix(x)[:, : genome_BMD.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
