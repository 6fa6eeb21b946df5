"""What each field of ``dataset.json`` must be: types, ranges and names that stay inside the dataset.

A manifest may come from a stranger's bucket, so that nothing of it is used before :func:`problem` finds nothing.
"""

from __future__ import annotations

import functools
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # pydantic asks for it below Python 3.12
)

from annotated_types import Ge, Le
from pydantic import AfterValidator, ConfigDict, FiniteFloat, StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict

MOST = 2**63 - 1  # of an int64
LARGEST_IMAGE = 65_535  # pixels; JPEG's own limit

Count = Annotated[int, Ge(0), Le(MOST)]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


def _inside(path: str) -> str:
    """Refuse names that lead out of the dataset or the cache, and names that no file can have."""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or "" in parts or not path.isprintable():
        raise ValueError("leads out of the dataset, or is no file name")
    return path


def _folder_name(name: str) -> str:
    """Refuse what is no name of a group in ``genetics.zarr``."""
    if not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise ValueError("is no name of a modality")
    return name


Path = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_inside)]
ModalityName = Annotated[str, StringConstraints(max_length=200), AfterValidator(_folder_name)]
STRICT = ConfigDict(strict=True)  # "122" is no number, and true is no count


class ShardFields(TypedDict):
    """An entry of ``images.shards``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    path: Path
    index: Path
    bytes: Count
    samples: Count
    sha256: Digest


class ImageFields(TypedDict):
    """Field ``images``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    image_size: Annotated[int, Ge(0), Le(LARGEST_IMAGE)]
    samples: Count
    index_sha256: Digest | Literal[""]
    schema: dict[str, str]
    statistics: dict[str, Any]
    shards: list[ShardFields]


class ModalityFields(TypedDict):
    """A value of ``genetics.modalities``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    kind: Literal["genotype", "binary", "float"]
    n_features: Annotated[int, Ge(1), Le(MOST)]
    participants: Annotated[int, Ge(1), Le(MOST)]
    sha256: Digest


class GeneticsFields(TypedDict):
    """Field ``genetics``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    modalities: dict[ModalityName, ModalityFields]


class SplitFields(TypedDict):
    """Field ``splits``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]
    seed: Annotated[int, Ge(-MOST), Le(MOST)]
    test_fraction: Annotated[FiniteFloat, Ge(0), Le(1)]
    relatives: NotRequired[Digest]


class _Document(TypedDict):
    __pydantic_config__ = STRICT  # type: ignore[misc]
    version: Annotated[int, Ge(1)]
    images: ImageFields
    genetics: GeneticsFields
    splits: SplitFields
    pseudonyms: str


class Document(_Document, total=False):
    """``dataset.json``; further fields are ignored.

    ``files`` is missing in datasets of earlier versions.
    """

    files: dict[Path, Digest]


def problem(document: dict[str, Any]) -> str | None:
    """Return what is wrong with a manifest, beginning with the field; None if nothing is.

    The values themselves are not shown: they may be long, or no text at all.
    """
    try:
        _adapter().validate_python(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"] if part != "[key]")
        return f"field {where!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    images = document["images"]
    if images["samples"] != sum(shard["samples"] for shard in images["shards"]):
        return "field 'images.samples': is not the sum of the shards' samples"
    if len({shard["path"] for shard in images["shards"]}) != len(images["shards"]):
        return "field 'images.shards': lists a path twice"
    return None


@functools.cache
def _adapter() -> TypeAdapter[Document]:
    return TypeAdapter(Document)
