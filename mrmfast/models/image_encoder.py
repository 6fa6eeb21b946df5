"""The image encoder: timm's VisionTransformer, cut into tokens, blocks and norm."""

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
from mrmfast.models.vit_names import require_model_name


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

    def forward(self, image_BCHW: Tensor, kept_BK: Tensor | None = None) -> Tensor:
        """Embed patches, add positions, put the class token first.

        Parameters
        ----------
        image_BCHW : Tensor, (B, 3, S, S)
            uint8, or normalised.
        kept_BK : Tensor of int64, (B, K), optional
            Which patches of each sample stay, in the order of the result (MAE); all by default.

        Returns
        -------
        Tensor, (B, 1 + patches, D), or (B, 1 + K, D)
        """
        x_BND = self.patch_embed(image_BCHW)
        if kept_BK is None:
            return torch.cat([self.cls_token.expand(len(x_BND), -1, -1), x_BND], 1) + self.pos_embed
        class_position, positions = self.pos_embed.split([1, x_BND.shape[1]], 1)
        x_BND = (x_BND + positions).gather(1, kept_BK[..., None].expand(-1, -1, x_BND.shape[-1]))
        return torch.cat([(self.cls_token + class_position).expand(len(x_BND), -1, -1), x_BND], 1)


def _is_plain(vit: Any) -> bool:
    """Tell whether tokens meet nothing but embedding, class token, positions, plain blocks and a norm.

    timm's variants put further things on their way (pre-norm, query norms, registers, no class position, positions of
    another image size); an objective that runs the blocks itself would pass them by, and the export would not be
    what was trained.
    """
    if not isinstance(vit, VisionTransformer) or any(type(block) is not Block for block in vit.blocks):
        return False
    attentions: list[Any] = [block.attn for block in vit.blocks]
    extras = [vit.norm_pre, vit.patch_drop, *(norm for attn in attentions for norm in (attn.q_norm, attn.norm))]
    with_class = vit.cls_token is not None and vit.num_prefix_tokens == 1 and not vit.no_embed_class
    return with_class and not vit.dynamic_img_size and all(isinstance(extra, nn.Identity) for extra in extras)


class ImageEncoder(nn.Module):
    """A timm ViT cut into tokens, blocks and norm, so that an objective can call the blocks itself.

    Parameters
    ----------
    arch : str
        timm model name, e.g. ``vit_base_patch16_224``.
    image_size : int
        Side, pixels; a multiple of the patch size.
    depth : int, optional
        Blocks in all, instead of the architecture's own.

    Attributes
    ----------
    tokens : PatchTokens
    blocks : ModuleList of timm Block
    norm : LayerNorm
    width, heads, patch, grid : int
        D; heads of a block; pixels a side of a patch; patches a side.

    Raises
    ------
    UserError
        Not a plain ViT, or an impossible size.
    """

    blocks: nn.ModuleList
    norm: nn.LayerNorm

    def __init__(self, arch: str, image_size: int, depth: int | None = None) -> None:
        super().__init__()
        # How timm builds the same model; export writes it beside the weights.
        self.arguments: dict[str, Any] = {"num_classes": 0, "img_size": image_size}
        if depth is not None:
            self.arguments["depth"] = depth
        try:
            vit: Any = timm.create_model(require_model_name(arch, "model.arch"), **self.arguments)
        except UserError:
            raise
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise UserError(
                f"model.arch={arch}: {' '.join(str(error).split())[:160]}; take a timm vit_*_patch16_* name"
            ) from error
        if not _is_plain(vit):
            raise UserError(f"model.arch={arch}: not a plain ViT with a class token; take a timm vit_*_patch16_* name")
        if image_size % vit.patch_embed.patch_size[0]:
            raise UserError(
                f"data.image_size={image_size}: not a multiple of the patch size {vit.patch_embed.patch_size[0]}"
            )
        self.arch, self.image_size = arch, image_size
        self.width: int = vit.embed_dim
        self.heads: int = vit.blocks[0].attn.num_heads
        self.patch: int = vit.patch_embed.patch_size[0]
        self.grid: int = image_size // self.patch
        for block in vit.blocks:
            pack_attention(block)
        self.tokens, self.blocks, self.norm = PatchTokens(vit), vit.blocks, vit.norm
        self.activation_checkpointing = False

    def forward(self, image_BCHW: Tensor, kept_BK: Tensor | None = None) -> Tensor:
        """Encode as timm does: (B, 3, S, S) to (B, 1 + patches, D); with `kept_BK`, those patches alone."""
        return self.run_blocks(self.tokens(image_BCHW, kept_BK))

    def run_blocks(self, x_BND: Tensor, first: int = 0) -> Tensor:
        """Run the blocks from number `first` on, and the last norm: (B, N, D) to (B, N, D)."""
        for block in self.blocks[first:]:
            x_BND = recomputed(self.activation_checkpointing, block, x_BND)
        return self.norm(x_BND)
