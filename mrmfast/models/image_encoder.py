"""The image encoder: a timm ViT, cut into tokens, blocks and norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from mrmfast.errors import UserError
from mrmfast.models.activation_checkpointing import recomputed
from mrmfast.models.attention import pack_attention
from mrmfast.models.patch_embed import PixelProjection
from mrmfast.models.positions import sincos_positions
from mrmfast.models.vit_names import require_model_name

# Their sizes are replaced by those of the ViT.
BEIT, CLIP = "beit_base_patch16_224", "vit_base_patch16_clip_quickgelu_224"


@dataclass(frozen=True)
class EncoderDesign:
    """What a published method changes in the plain ViT; by default nothing.

    Attributes
    ----------
    blocks : {"vit", "beit", "clip"}
        beit: BEiT's, whose keys have no bias, and which can have the next two. clip: CLIP's, with quick GELU, a norm
        before the first block, and no bias of the patch embedding (M3AE).
    positions : {"learned", "column_first", "row_first", "relative"}
        learned: a vector per token. column_first, row_first: fixed sines and cosines (MAE; MoCo v3). relative: a bias
        of the attention for each offset between two patches, one table for all blocks (BEiT, SimMIM).
    layer_scale : float, optional
        Initial factor of each residual branch of a BEiT block; none by default.
    drop_path : float
        Probability that a residual branch of the last block is skipped; it falls linearly to 0 at the first.
    frozen_patches : bool
        Whether the patch embedding keeps its initial weights (MoCo v3).
    """

    blocks: Literal["vit", "beit", "clip"] = "vit"
    positions: Literal["learned", "column_first", "row_first", "relative"] = "learned"
    layer_scale: float | None = None
    drop_path: float = 0.0
    frozen_patches: bool = False

    def __post_init__(self) -> None:
        fitting = ("learned", "relative") if self.blocks == "beit" else ("learned", "column_first", "row_first")
        if self.positions not in fitting or (self.layer_scale is not None and self.blocks != "beit"):
            raise ValueError(f"{self}: no such encoder")


class PatchTokens(nn.Module):
    """Patch embedding, class token and positions of a timm ViT, as one module that owns its parameters.

    ZeRO-3 gathers a parameter when the module that owns it runs; timm keeps the last two on the model itself.
    """

    cls_token: nn.Parameter
    pos_embed: nn.Parameter | None

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.patch_embed, self.cls_token, self.pos_embed = vit.patch_embed, vit.cls_token, vit.pos_embed
        self.norm_pre = getattr(vit, "norm_pre", None) or nn.Identity()
        self.patch_embed.proj = PixelProjection(vit.patch_embed.proj)
        self.patch_embed.strict_img_size = False  # a view may be smaller

    def fix_positions(self, positions_ND: Tensor) -> None:
        """Replace the learned positions by constants; the class token's is 0."""
        assert self.pos_embed is not None
        table = nn.functional.pad(positions_ND, (0, 0, 1, 0))[None]
        self.pos_embed = nn.Parameter(table.to(self.pos_embed.dtype), requires_grad=False)

    def forward(
        self,
        image_BCHW: Tensor,
        kept_BK: Tensor | None = None,
        masked_BN: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Embed patches, add positions, put the class token first.

        Parameters
        ----------
        image_BCHW : Tensor, (B, 3, S, S)
            uint8, or normalised. Positions are resized for another S than the model's.
        kept_BK : Tensor of int64, (B, K), optional
            Which patches of each sample stay, in the order of the result (MAE); all by default.
        masked_BN : Tensor of bool, (B, patches), optional
            Which embedded patches `mask_token` replaces, before positions are added (SimMIM, AttMask).
        mask_token : Tensor, (1, 1, D), optional

        Returns
        -------
        Tensor, (B, 1 + patches, D), or (B, 1 + K, D)
        """
        x_BND = self.patch_embed(image_BCHW)
        if masked_BN is not None and mask_token is not None:
            x_BND = torch.where(masked_BN[..., None], mask_token, x_BND)
        class_token = self.cls_token
        if self.pos_embed is not None:
            class_position, positions = self.pos_embed.split([1, self.pos_embed.shape[1] - 1], 1)
            class_token, x_BND = class_token + class_position, x_BND + _resized(positions, x_BND.shape[1])
        if kept_BK is not None:
            x_BND = x_BND.gather(1, kept_BK[..., None].expand(-1, -1, x_BND.shape[-1]))
        tokens: Tensor = self.norm_pre(torch.cat([class_token.expand(len(x_BND), -1, -1), x_BND], 1))
        return tokens


def _resized(positions_1ND: Tensor, patches: int) -> Tensor:
    """Resize positions to another number of patches, as DINO and iBOT do: bicubic, with 0.1 patch against rounding."""
    if positions_1ND.shape[1] == patches:
        return positions_1ND
    before, after = round(positions_1ND.shape[1] ** 0.5), round(patches**0.5)
    table = positions_1ND.transpose(1, 2).unflatten(2, (before, before))
    # The published code hands over the factor, which then is the distance of the samples, too.
    table = nn.functional.interpolate(table, scale_factor=(after + 0.1) / before, mode="bicubic")
    return table.flatten(2).transpose(1, 2)


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


def _sizes(vit: Any) -> dict[str, Any]:
    """Return the arguments that give another timm model the sizes of a ViT."""
    block = vit.blocks[0]
    return {
        "patch_size": vit.patch_embed.patch_size[0],
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / vit.embed_dim,
    }


def _beit_options(design: EncoderDesign) -> dict[str, Any]:
    return {
        "init_values": design.layer_scale or 0.0,  # timm takes a None for its default
        "use_abs_pos_emb": design.positions == "learned",
        "use_rel_pos_bias": False,
        "use_shared_rel_pos_bias": design.positions == "relative",
        "global_pool": "token",  # with the default, the last norm would come after pooling
    }


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
    design : EncoderDesign
    **sizes
        Further arguments of the timm model, e.g. ``embed_dim``.

    Attributes
    ----------
    tokens : PatchTokens
    blocks : ModuleList of timm Block
    rel_pos_bias : Module or None
        Makes the bias that all blocks share.
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

    def __init__(
        self,
        arch: str,
        image_size: int,
        depth: int | None = None,
        design: EncoderDesign = EncoderDesign(),
        **sizes: Any,
    ) -> None:
        super().__init__()
        # How timm builds the same model; export writes it beside the weights.
        self.arguments: dict[str, Any] = {"num_classes": 0, "img_size": image_size, **sizes}
        if depth is not None:
            self.arguments["depth"] = depth
        try:
            require_model_name(arch, "model.arch")
            vit: Any = timm.create_model(arch, drop_path_rate=design.drop_path, **self.arguments)
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
        if design.blocks != "vit":
            options = _beit_options(design) if design.blocks == "beit" else {}
            arch = BEIT if design.blocks == "beit" else CLIP
            self.arguments = {"num_classes": 0, "img_size": image_size, **_sizes(vit), **options}
            vit = timm.create_model(arch, drop_path_rate=design.drop_path, **self.arguments)
        if design.blocks != "beit":
            for block in vit.blocks:
                pack_attention(block)
        self.arch, self.image_size = arch, image_size
        self.width: int = vit.embed_dim
        self.heads: int = vit.blocks[0].attn.num_heads
        self.patch: int = vit.patch_embed.patch_size[0]
        self.grid: int = image_size // self.patch
        self.tokens, self.blocks, self.norm = PatchTokens(vit), vit.blocks, vit.norm
        self.rel_pos_bias: nn.Module | None = getattr(vit, "rel_pos_bias", None)
        if design.positions in ("column_first", "row_first"):
            first = cast(Literal["column", "row"], design.positions.removesuffix("_first"))
            self.tokens.fix_positions(sincos_positions(self.grid, self.width, first))
        if design.frozen_patches:
            self.tokens.patch_embed.requires_grad_(False)
        self.activation_checkpointing = False

    def forward(
        self,
        image_BCHW: Tensor,
        kept_BK: Tensor | None = None,
        masked_BN: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Encode as timm does: (B, 3, S, S) to (B, 1 + patches, D); the rest as in :meth:`PatchTokens.forward`."""
        return self.run_blocks(self.tokens(image_BCHW, kept_BK, masked_BN, mask_token))

    def forward_with_attention(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Encode, and return with it the last block's attention of the class token to the patches, (B, patches)."""
        x_BND = self.tokens(image_BCHW)
        for block in self.blocks[:-1]:
            x_BND = block(x_BND)
        last: Any = self.blocks[-1]
        return self.run_blocks(x_BND, len(self.blocks) - 1), last.attn.class_attention(last.norm1(x_BND))

    def run_blocks(self, x_BND: Tensor, first: int = 0) -> Tensor:
        """Run the blocks from number `first` on, and the last norm: (B, N, D) to (B, N, D)."""
        shared = () if self.rel_pos_bias is None else (self.rel_pos_bias(),)
        for block in self.blocks[first:]:
            x_BND = recomputed(self.activation_checkpointing, block, x_BND, *shared)
        return self.norm(x_BND)
