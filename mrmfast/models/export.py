"""A pre-trained image encoder as a file that timm loads strictly."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from mrmfast.atomic import write_aside
from mrmfast.batch import PIXEL_MEAN, PIXEL_STD
from mrmfast.errors import UserError

# timm models of this package, by the module that registers them when it is imported.
REGISTERED_BY = {"mrmfast_literal_vit": "mrmfast.objectives.mrm.literal_vit"}


@dataclass(frozen=True)
class ExportRecipe:
    """How timm builds the model whose features are the encoder's.

    Attributes
    ----------
    timm_model : str
    arguments : dict
        Of ``timm.create_model``, beside the name.
    mean, std : tuple of float
        Of the pixels, RGB in 0..1, that the encoder was trained with.
    """

    timm_model: str
    arguments: dict[str, Any]
    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD


def timm_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename parameters of an :class:`ImageEncoder` to timm's names, in float32 on the CPU."""
    return {name.removeprefix("tokens."): value.detach().float().cpu().contiguous() for name, value in tensors.items()}


def export_encoder(path: Path, tensors: Mapping[str, Tensor], recipe: ExportRecipe) -> None:
    """Write ``encoder.safetensors`` and, beside it, ``encoder.json`` with how to build the model.

    Parameters
    ----------
    path : Path
        The safetensors file.
    tensors : mapping
        Whole parameters of an :class:`ImageEncoder` by name: the module itself holds a share of them under ZeRO-3,
        rounded ones in bf16.
    recipe : ExportRecipe
    """
    with write_aside(path, "wb") as file:
        file.write(save(timm_state(tensors), metadata={"format": "pt"}))
    with write_aside(path.with_suffix(".json")) as text:
        json.dump(asdict(recipe), text, indent=1)


def load_encoder(path: str | Path) -> VisionTransformer | Beit:
    """Build the timm model of an export and load it strictly.

    ``timm.data.resolve_model_data_config`` of it gives the mean and standard deviation that it was trained with (the
    architecture's own are often others), its image size, and a crop of the whole image.

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
        if (name := recipe["timm_model"]) in REGISTERED_BY:
            importlib.import_module(REGISTERED_BY[name])
        model: Any = timm.create_model(recipe["timm_model"], **recipe["arguments"])
        model.load_state_dict(load_file(path), strict=True)
        size = recipe["arguments"]["img_size"]
        trained = {
            "mean": tuple(recipe["mean"]),
            "std": tuple(recipe["std"]),
            "input_size": (3, size, size),
            "crop_pct": 1.0,  # training sees the whole image; many architectures' own 0.9 would cut its rim
        }
    except (FileNotFoundError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: not an exported encoder ({' '.join(str(error).split())[:200]})") from error
    model.pretrained_cfg = {**(getattr(model, "pretrained_cfg", None) or {}), **trained}
    assert isinstance(model, (VisionTransformer, Beit))
    return model
