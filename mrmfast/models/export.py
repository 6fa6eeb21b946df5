"""A pre-trained image encoder as a file that timm loads strictly."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Required

import timm
import torch
from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, FiniteFloat, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12

from mrmfast.atomic import write_aside
from mrmfast.batch import PIXEL_MEAN, PIXEL_STD
from mrmfast.errors import UserError
from mrmfast.models.config import MOST_HEADS, MOST_LAYERS, MOST_PIXELS, MOST_WIDTH
from mrmfast.models.vit_names import require_model_name
from mrmfast.yaml_text import shown

MOST_BYTES = 1 << 16  # of encoder.json; ours has 300

Channels = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
Deviation = Annotated[FiniteFloat, Gt(0)]


class _Arguments(TypedDict, total=False):
    """What an export hands to ``timm.create_model``: nothing that names a file, an address or code."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    img_size: Required[Annotated[int, Ge(1), Le(MOST_PIXELS)]]
    num_classes: Required[Literal[0]]
    depth: Annotated[int, Ge(1), Le(MOST_LAYERS)]
    base: str
    relation_blocks: Annotated[int, Ge(0), Le(MOST_LAYERS)]
    patch_size: Annotated[int, Ge(1), Le(1024)]
    embed_dim: Annotated[int, Ge(1), Le(MOST_WIDTH)]
    num_heads: Annotated[int, Ge(1), Le(MOST_HEADS)]
    mlp_ratio: Annotated[FiniteFloat, Gt(0), Le(64)]
    init_values: FiniteFloat
    use_abs_pos_emb: bool
    use_rel_pos_bias: bool
    use_shared_rel_pos_bias: bool
    global_pool: Literal["token", "avg", ""]
    class_token: bool
    final_norm: bool
    act_layer: Literal["relu", "gelu", "silu"]


class _Recipe(TypedDict):
    timm_model: str
    arguments: _Arguments
    mean: Channels
    std: tuple[Deviation, Deviation, Deviation]


_RECIPE = TypeAdapter(_Recipe)

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
    recipe = _read_recipe(path.with_suffix(".json"))
    name, arguments = recipe["timm_model"], recipe["arguments"]
    try:
        _require_fit(path, name, arguments)
        model: Any = timm.create_model(name, **arguments)
        model.load_state_dict(load_file(path), strict=True)
    except (OSError, TypeError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        raise UserError(f"{path}: not an exported encoder ({' '.join(str(error).split())[:200]})") from error
    size = arguments["img_size"]
    trained = {
        "mean": tuple(recipe["mean"]),
        "std": tuple(recipe["std"]),
        "input_size": (3, size, size),
        "crop_pct": 1.0,  # training sees the whole image; many architectures' own 0.9 would cut its rim
    }
    model.pretrained_cfg = {**(getattr(model, "pretrained_cfg", None) or {}), **trained}
    assert isinstance(model, (VisionTransformer, Beit))
    return model


def _read_recipe(path: Path) -> dict[str, Any]:
    """Read ``encoder.json``, which may come from a stranger: known keys alone, each within its range."""
    try:
        with open(path, "rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise UserError(f"{path}: not the recipe of an encoder (more than {MOST_BYTES} bytes)")
        recipe = _RECIPE.validate_python(json.loads(text))
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{path}: {reason}; it lies beside encoder.safetensors, copy both") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: not the recipe of an encoder ({shown(key)}: {first['msg'].lower()})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not the recipe of an encoder (no JSON); copy it again") from error
    for key, model in (("timm_model", recipe["timm_model"]), ("arguments.base", recipe["arguments"].get("base"))):
        if model in REGISTERED_BY:
            importlib.import_module(REGISTERED_BY[model])
        if model is not None:
            require_model_name(model, f"{path}: {key}")
    return dict(recipe)


def _require_fit(path: Path, name: str, arguments: Mapping[str, Any]) -> None:
    """Compare names and shapes of the weights with the model's before the model takes memory."""
    with torch.device("meta"):
        expected = {key: list(value.shape) for key, value in timm.create_model(name, **arguments).state_dict().items()}
    with safe_open(path, framework="pt") as file:
        stored = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - it is no mapping
    if stored != expected:
        other = sorted(key for key in {*stored, *expected} if stored.get(key) != expected.get(key))
        raise ValueError(f"{len(other)} weights are not those of {name}, e.g. {other[0][:60]}")
