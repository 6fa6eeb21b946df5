"""A pre-trained image encoder as a file that timm loads strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.models import register_model
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from mrmfast.atomic import write_aside
from mrmfast.batch import PIXEL_MEAN, PIXEL_STD
from mrmfast.errors import UserError
from mrmfast.models.image_encoder import ImageEncoder, literal_block
from mrmfast.models.relation import Residual

LITERAL_ARCH = "mrmfast_literal_vit"


class _LiteralBlock(Block):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        assert attn_mask is None and not is_causal, "a literal block attends to everything"
        return literal_block(self, x)


@register_model
def mrmfast_literal_vit(base: str, relation_blocks: int, pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build the timm ViT `base` whose first blocks lack the residual around attention.

    This is what an encoder trained with ``residual: cross | none`` computes; a plain ViT with the same weights would
    compute something else. Importing ``mrmfast.models.export`` registers it with timm.
    """
    vit: Any = timm.create_model(base, pretrained=pretrained, **kwargs)
    for block in vit.blocks[:relation_blocks]:
        block.__class__ = _LiteralBlock  # same parameters under the same names, another forward
    assert isinstance(vit, VisionTransformer)
    return vit


def timm_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename parameters of an :class:`ImageEncoder` to timm's names, in float32 on the CPU."""
    return {name.removeprefix("tokens."): value.detach().float().cpu().contiguous() for name, value in tensors.items()}


def export_encoder(path: Path, tensors: Mapping[str, Tensor], encoder: ImageEncoder, residual: Residual) -> None:
    """Write ``encoder.safetensors`` and, beside it, ``encoder.json`` with how to build the model.

    Parameters
    ----------
    path : Path
        The safetensors file.
    tensors : mapping
        Whole parameters of `encoder` by name: the module itself holds a share of them under ZeRO-3, rounded ones in
        bf16.
    encoder : ImageEncoder
    residual : {"all", "cross", "none"}
        Decides which timm model computes the same features.
    """
    literal = {"base": encoder.arch, "relation_blocks": encoder.relation_blocks}
    recipe = {
        "timm_model": encoder.arch if residual == "all" else LITERAL_ARCH,
        "arguments": encoder.arguments if residual == "all" else {**literal, **encoder.arguments},
        "mean": list(PIXEL_MEAN),
        "std": list(PIXEL_STD),
    }
    with write_aside(path, "wb") as file:
        file.write(save(timm_state(tensors), metadata={"format": "pt"}))
    with write_aside(path.with_suffix(".json")) as text:
        json.dump(recipe, text, indent=1)


def load_encoder(path: str | Path) -> VisionTransformer:
    """Build the timm model of an export and load it strictly.

    ``timm.data.resolve_model_data_config`` of it gives the mean and standard deviation that it was trained with (the
    architecture's own are often others) and its image size.

    Parameters
    ----------
    path : path
        ``encoder.safetensors``; its recipe ``encoder.json`` lies beside it.

    Raises
    ------
    UserError
        A file is missing, damaged, or does not fit.
    """
    path = Path(path)
    try:
        recipe = json.loads(path.with_suffix(".json").read_text())
        model: Any = timm.create_model(recipe["timm_model"], **recipe["arguments"])
        model.load_state_dict(load_file(path), strict=True)
        size = recipe["arguments"]["img_size"]
        trained = {"mean": tuple(recipe["mean"]), "std": tuple(recipe["std"]), "input_size": (3, size, size)}
    except (FileNotFoundError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: not an exported encoder ({' '.join(str(error).split())[:200]})") from error
    model.pretrained_cfg = {**(getattr(model, "pretrained_cfg", None) or {}), **trained}
    assert isinstance(model, VisionTransformer)
    return model
