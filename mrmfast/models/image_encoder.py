"""The image encoder: timm's VisionTransformer, its first blocks run in relation-masking mode."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mrmfast.errors import UserError
from mrmfast.models.activation_checkpointing import recomputed
from mrmfast.models.attention import pack_attention
from mrmfast.models.patch_embed import PixelProjection
from mrmfast.models.relation import Residual


class PatchTokens(nn.Module):
    """Patch embedding, class token and positions of a timm ViT, as one module that owns its parameters.

    ZeRO-3 gathers a parameter when the module that owns it runs; timm keeps the last two on the model itself.
    """

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.patch_embed, self.cls_token, self.pos_embed = vit.patch_embed, vit.cls_token, vit.pos_embed
        self.patch_embed.proj = PixelProjection(vit.patch_embed.proj)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, S, S), uint8 or normalised, to (B, 1 + patches, D)."""
        x = self.patch_embed(image_BCHW)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed


def _is_plain(vit: Any) -> bool:
    """Tell whether tokens meet nothing but embedding, class token, positions, plain blocks and a norm.

    timm's variants put further things on their way (pre-norm, query norms, registers, no class position, positions of
    another picture size); the relation path would pass them by, and the export would not be what was trained.
    """
    if not isinstance(vit, VisionTransformer) or any(type(block) is not Block for block in vit.blocks):
        return False
    attentions: list[Any] = [block.attn for block in vit.blocks]
    extras = [vit.norm_pre, vit.patch_drop, *(norm for attn in attentions for norm in (attn.q_norm, attn.norm))]
    with_class = vit.cls_token is not None and vit.num_prefix_tokens == 1 and not vit.no_embed_class
    return with_class and not vit.dynamic_img_size and all(isinstance(extra, nn.Identity) for extra in extras)


class ImageEncoder(nn.Module):
    """A timm ViT cut into stem, blocks and norm, so that relation blocks can exchange with the genome side.

    Parameters
    ----------
    arch : str
        timm model name, e.g. ``vit_base_patch16_224``.
    image_size : int
        Side, pixels; a multiple of the patch size.
    relation_blocks : int
        How many of the first blocks mask relations (paper: 2).
    depth : int, optional
        Blocks in all, instead of the architecture's own.

    Raises
    ------
    UserError
        Not a plain ViT, or an impossible size.
    """

    blocks: nn.ModuleList
    norm: nn.LayerNorm

    def __init__(self, arch: str, image_size: int, relation_blocks: int, depth: int | None = None) -> None:
        super().__init__()
        # How timm builds the same model; export writes it beside the weights.
        self.arguments: dict[str, Any] = {"num_classes": 0, "img_size": image_size}
        if depth is not None:
            self.arguments["depth"] = depth
        try:
            vit: Any = timm.create_model(arch, **self.arguments)
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise UserError(
                f"model.arch={arch}: {' '.join(str(error).split())}; take a timm vit_*_patch16_* name"
            ) from error
        if not _is_plain(vit):
            raise UserError(f"model.arch={arch}: not a plain ViT with a class token; take a timm vit_*_patch16_* name")
        if not 0 < relation_blocks <= len(vit.blocks):
            raise UserError(
                f"model.relation_blocks={relation_blocks}: {arch} has {len(vit.blocks)} blocks; take 1 to that many, "
                "or set model.depth"
            )
        if image_size % vit.patch_embed.patch_size[0]:
            raise UserError(
                f"data.image_size={image_size}: not a multiple of the patch size {vit.patch_embed.patch_size[0]}"
            )
        self.arch, self.image_size, self.relation_blocks = arch, image_size, relation_blocks
        self.width: int = vit.embed_dim
        self.heads: int = vit.blocks[0].attn.num_heads
        self.patch: int = vit.patch_embed.patch_size[0]
        self.grid: int = image_size // self.patch
        for block in vit.blocks:
            pack_attention(block)
        self.tokens, self.blocks, self.norm = PatchTokens(vit), vit.blocks, vit.norm
        self.checkpointing = False

    def forward(self, image_BCHW: Tensor, residual: Residual = "all") -> Tensor:
        """Encode as timm does: the intact branch without the genome, (B, 3, S, S) to (B, 1 + patches, D)."""
        x = self.tokens(image_BCHW)
        for block in self.blocks[: self.relation_blocks]:
            x = block(x) if residual == "all" else literal_block(block, x)
        return self.later_blocks(x)

    def later_blocks(self, x_BND: Tensor) -> Tensor:
        """Run the plain blocks after the relation blocks, and the last norm: (B, N, D) to (B, N, D)."""
        for block in self.blocks[self.relation_blocks :]:
            x_BND = recomputed(self.checkpointing, block, x_BND)
        return self.norm(x_BND)


def literal_block(block: Any, x_BND: Tensor) -> Tensor:
    """Run a ViT block without the residual around its attention (paper's equations), (B, N, D) to (B, N, D)."""
    x_BND = block.ls1(block.attn(block.norm1(x_BND)))
    return x_BND + block.ls2(block.mlp(block.norm2(x_BND)))
