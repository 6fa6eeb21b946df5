"""The timm model of an encoder that was trained with ``mask.residual: cross | none``."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from mrmfast.models.export import ExportRecipe
from mrmfast.models.image_encoder import ImageEncoder

LITERAL_ARCH = "mrmfast_literal_vit"


def literal_block(block: Any, x_BND: Tensor) -> Tensor:
    """Run a ViT block without the residual around its attention (paper's equations), (B, N, D) to (B, N, D)."""
    x_BND = block.ls1(block.attn(block.norm1(x_BND)))
    return x_BND + block.ls2(block.mlp(block.norm2(x_BND)))


class _LiteralBlock(Block):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        assert attn_mask is None and not is_causal, "a literal block attends to everything"
        return literal_block(self, x)


@register_model
def mrmfast_literal_vit(base: str, relation_blocks: int, pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build the timm ViT `base` whose first blocks lack the residual around attention.

    A plain ViT with the same weights computes something else. Importing this module registers the model with timm.
    """
    vit: Any = timm.create_model(base, pretrained=pretrained, **kwargs)
    for block in vit.blocks[:relation_blocks]:
        block.__class__ = _LiteralBlock  # same parameters under the same names, another forward
    assert isinstance(vit, VisionTransformer)
    return vit


def literal_recipe(encoder: ImageEncoder, relation_blocks: int) -> ExportRecipe:
    """Return how timm builds `encoder` with literal relation blocks."""
    arguments = {"base": encoder.arch, "relation_blocks": relation_blocks, **encoder.arguments}
    return ExportRecipe(LITERAL_ARCH, arguments)
