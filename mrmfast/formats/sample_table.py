"""The table of all samples: ``images/index.zarr``, one row per image in shard order."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from mrmfast.arithmetic import ceil_div
from mrmfast.atomic import rename_directory
from mrmfast.errors import PARSE_ERRORS, ClosedError, UserError
from mrmfast.formats.checksums import seal
from mrmfast.formats.manifest import Shard

INDEX = "images/index.zarr"
# Rows per chunk and per shard file: a few object-store reads even for millions of images.
CHUNK_ROWS, SHARD_ROWS = 65_536, 1_048_576


@dataclass(frozen=True)
class MaskColumn:
    """Offsets and sizes of one mask of every sample.

    Attributes
    ----------
    name : str
    channels : int
        1, 3 or 4; the same in all samples.
    offset, size : ndarray of int64, shape (samples,)
        Bytes in the sample's shard; size 0: the sample has no such mask.
    """

    name: str
    channels: int
    offset: np.ndarray
    size: np.ndarray


@dataclass(frozen=True)
class SampleTable:
    """All samples of a dataset, one row each, in shard order.

    Attributes
    ----------
    shard, offset, size : ndarray of int64, shape (samples,)
        Number of the shard, and the position of the JPEG bytes in it.
    key, participant : ndarray of str, shape (samples,)
    masks : tuple of MaskColumn
        By name.
    """

    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    key: np.ndarray
    participant: np.ndarray
    masks: tuple[MaskColumn, ...] = ()

    def __len__(self) -> int:
        return len(self.shard)


def write_table(path: Path, columns: dict[str, np.ndarray], attributes: dict[str, Any] | None = None) -> str:
    """Write equally long 1-D columns as a sealed Zarr v3 group, aside and renamed; replaces an older table.

    Returns
    -------
    str
        Digest of the table: see :func:`mrmfast.formats.checksums.seal`.
    """
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    group = zarr.open_group(aside, mode="w", zarr_format=3)
    group.attrs.update(attributes or {})
    write_columns(group, columns)
    digest = seal(aside)
    if path.exists():
        shutil.rmtree(path)
    rename_directory(aside, path)
    return digest


def write_columns(group: zarr.Group, columns: dict[str, np.ndarray]) -> None:
    """Add 1-D columns to a Zarr group: zstd with checksum, strings as ``vlen-utf8``."""
    for name, values in columns.items():
        length = max(1, len(values))
        chunk = min(CHUNK_ROWS, length)
        array = group.create_array(
            name,
            shape=(len(values),),
            chunks=(chunk,),
            shards=(min(SHARD_ROWS, ceil_div(length, chunk) * chunk),),
            dtype="str" if values.dtype == object else values.dtype,
            compressors=[ZstdCodec(level=3, checksum=True)],
        )
        array[:] = values


def read_sample_table(url: str, store: Store | None = None) -> SampleTable:
    """Read ``images/index.zarr`` of a dataset.

    Parameters
    ----------
    url : str
        Folder of the dataset; its URL for the errors, where `store` is given.
    store : Store, optional
        The dataset's folder, each file compared with the manifest
        (:meth:`mrmfast.storage.source.DatasetSource.zarr_store`). Without it nothing is compared.

    Raises
    ------
    UserError
        The table is missing or damaged, or the object store does not give it.
    ClosedError
        The dataset was closed meanwhile.
    """
    where = f"{url.rstrip('/')}/{INDEX}"
    try:
        group: Any = zarr.open_group(store or url, path=INDEX, mode="r", zarr_format=3)
        columns = {name: _column(group, name) for name in ("shard", "offset", "size", "key", "participant")}
        masks = tuple(
            MaskColumn(name, channels, *(_column(group, f"masks/{name}/{part}") for part in ("offset", "size")))
            for name, channels in group.attrs.get("masks", {}).items()
        )
        table = SampleTable(**columns, masks=masks)
        _check_columns(table)
    except (UserError, ClosedError):  # subclasses of ValueError and RuntimeError with their own messages
        raise
    except PARSE_ERRORS as error:
        raise UserError(
            f"{where}: missing or damaged sample table ({type(error).__name__}); run the image preprocessor again"
        ) from error
    return table


def _column(group: Any, name: str) -> np.ndarray:
    array = group[name]
    if array.ndim != 1 or array.shape != group["shard"].shape:
        raise ValueError(f"column {name} has another length")
    return np.asarray(array[:])


def _check_columns(table: SampleTable) -> None:
    """Refuse columns of other types, and places that no file has."""
    numbers = [table.shard, table.offset, table.size]
    for mask in table.masks:
        if mask.channels not in (1, 3, 4):
            raise ValueError(f"a mask of {mask.channels} channels")
        numbers += [mask.offset, mask.size]
    if any(column.dtype != np.int64 or (len(column) and column.min() < 0) for column in numbers):
        raise ValueError("a column of numbers holds something else than counts")
    if not all(isinstance(text, str) for column in (table.key, table.participant) for text in column.tolist()):
        raise TypeError("a column of texts holds something else")


def check_table(table: SampleTable, shards: Sequence[Shard], where: str) -> None:
    """Compare a table with the shards of the manifest.

    Raises
    ------
    UserError
        It lists other numbers of samples, or a place outside its shard.
    """
    samples = [shard.samples for shard in shards]
    sizes = np.array([shard.bytes for shard in shards], dtype=np.int64)
    if sum(samples) != len(table) or not np.array_equal(table.shard, np.repeat(np.arange(len(shards)), samples)):
        raise UserError(
            f"{where}: dataset.json lists {sum(samples)} images in {len(shards)} shards, but the "
            "sample table differs; they belong to different versions: copy the dataset again"
        )
    places = [(table.offset, table.size), *((mask.offset, mask.size) for mask in table.masks)]
    for offset, size in places:
        if (offset > sizes[table.shard] - size).any():
            raise UserError(f"{where}/{INDEX}: a sample lies outside its shard; run the image preprocessor again")
