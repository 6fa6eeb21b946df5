"""The genetics of a dataset on disk: a Zarr v3 group per modality, sample-major, rows packed. Schema and writer.

Schema (``genetics.zarr/NAME``, documented in ``docs/formats.md``): ``participants`` (strings), ``rows`` (packed
bytes, float32 or float16), ``features/*`` (one column per property), ``checksums.json`` (SHA-256 of every file, its
own in the manifest). Kinds: ``genotype`` is 2 bits a feature (0, 1, 2 copies, 3 missing; four features a byte, lowest
bits first), ``binary`` 1 bit (lowest first), ``float`` a number with NaN for missing. The reader is
:mod:`mrmfast.data.genetics.store`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mrmfast.atomic import rename_directory, write_aside
from mrmfast.errors import UserError
from mrmfast.formats.checksums import seal
from mrmfast.formats.manifest import updating
from mrmfast.formats.zarr_shard import ZSTD_LEVEL

Kind = Literal["genotype", "binary", "float"]
FloatDtype = Literal["float32", "float16"]
STORE = "genetics.zarr"
# Written by us, not by zarr, so that it is the same bytes whoever wrote it and `check` can compare them.
ROOT_METADATA = '{"attributes": {}, "zarr_format": 3, "node_type": "group"}\n'
MISSING_GENOTYPE = 3
# x_G is SNPs, then PGS, then burden (docs/methods/mrm.md#symbols); for TCGA expression, copy number, mutations.
MODALITY_ORDER = ("snps", "pgs", "burden", "rna", "cnv", "mutations")
ROWS_PER_CHUNK, CHUNKS_PER_SHARD = 1024, 16
FEATURE_COLUMNS: dict[str, Any] = {
    "name": object,
    "group": object,
    "chromosome": object,
    "position": np.int64,
    "reference": object,
    "alternative": object,
    "fill": np.float32,
    "mean": np.float32,
    "scale": np.float32,
}


@dataclass(frozen=True)
class FeatureTable:
    """Columns of length ``n_features``; a group's features lie side by side.

    Attributes
    ----------
    name, group : ndarray of str
        The group becomes one genome token (docs/methods/mrm.md#encoders).
    fill : ndarray of float32
        What a missing value is replaced by on input, in stored units.
    mean, scale : ndarray of float32
        stored = (raw - mean) / scale; 0 and 1 where nothing was standardised.
    chromosome, reference, alternative : ndarray of str
        Empty strings where they mean nothing.
    position : ndarray of int64
        0 where it means nothing.
    """

    name: np.ndarray
    group: np.ndarray
    chromosome: np.ndarray
    position: np.ndarray
    reference: np.ndarray
    alternative: np.ndarray
    fill: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def build(cls, name: Iterable[str], group: Iterable[str], **columns: Any) -> FeatureTable:
        """Make a table from names and groups; missing columns get their neutral value (scale 1, else 0 or "")."""
        names = np.array(list(name), dtype=object)
        given: dict[str, Any] = {"name": names, "group": list(group), **columns}
        table = {}
        for column, dtype in FEATURE_COLUMNS.items():
            neutral = "" if dtype is object else (1 if column == "scale" else 0)
            values = given.pop(column, None)
            table[column] = np.full(len(names), neutral, dtype) if values is None else np.array(list(values), dtype)
        assert not given, f"unknown feature columns: {sorted(given)}"
        built = cls(**table)
        assert all(len(column) == len(names) for column in table.values()), "feature columns differ in length"
        assert len(built.groups()) == len(set(built.group)), "features of one group must lie side by side"
        return built

    def __len__(self) -> int:
        return len(self.name)

    def groups(self) -> list[tuple[str, int]]:
        """Return (group, number of features) in order."""
        starts = np.flatnonzero(np.r_[True, self.group[1:] != self.group[:-1]]) if len(self) else np.array([], int)
        sizes = np.diff(np.r_[starts, len(self)])
        return [(str(self.group[start]), int(size)) for start, size in zip(starts, sizes, strict=True)]


def shard_shape(participants: int) -> tuple[int, int]:
    """Return rows a chunk and chunks a shard file of ``rows``."""
    chunk = min(ROWS_PER_CHUNK, participants)
    return chunk, min(CHUNKS_PER_SHARD, -(-participants // chunk))


def packed_width(kind: Kind, n_features: int) -> int:
    """Return the number of columns of ``rows``: bytes for packed kinds, features for float."""
    return {"genotype": -(-n_features // 4), "binary": -(-n_features // 8), "float": n_features}[kind]


def pack_rows(kind: Kind, values: np.ndarray, float_dtype: FloatDtype = "float32") -> np.ndarray:
    """Pack values of one modality.

    Parameters
    ----------
    kind : {"genotype", "binary", "float"}
    values : ndarray, shape (participants, n_features)
        genotype: 0, 1, 2, or negative for missing; binary: 0 or 1; float: numbers, NaN for missing.
    float_dtype : {"float32", "float16"}
        How ``float`` is kept; float16 keeps 3 digits and numbers up to 65504.

    Returns
    -------
    ndarray, shape (participants, packed_width(kind, n_features))
        uint8, or `float_dtype` for ``float``.

    Raises
    ------
    UserError
        A value outside the range of its kind.
    """
    if kind == "float":
        if float_dtype == "float16" and np.nanmax(np.abs(values), initial=0) > np.finfo(np.float16).max:
            raise UserError("float values beyond 65504 do not fit float16; standardise them or keep float32")
        return np.ascontiguousarray(values, dtype=float_dtype)
    top = 2 if kind == "genotype" else 1
    if values.size and (values.max() > top or (kind == "binary" and values.min() < 0)):
        raise UserError(f"{kind} values must lie in 0..{top}; found {int(values.min())}..{int(values.max())}")
    if kind == "binary":
        return np.packbits(values.astype(np.uint8), axis=1, bitorder="little")
    codes = np.where(values < 0, np.uint8(MISSING_GENOTYPE), values.astype(np.uint8))
    packed = np.zeros((len(codes), packed_width(kind, codes.shape[1])), dtype=np.uint8)
    for place in range(4):
        part = codes[:, place::4]
        packed[:, : part.shape[1]] |= part << (2 * place)
    return packed


def write_modality(
    dataset: str | Path,
    name: str,
    kind: Kind,
    participants: Iterable[str],
    features: FeatureTable,
    blocks: Iterable[np.ndarray] | Callable[[int, Path], None],
    *,
    attributes: dict[str, Any] | None = None,
    float_dtype: FloatDtype = "float32",
    packed: bool = False,
) -> None:
    """Write one modality aside, rename it into ``genetics.zarr``, and enter it in the manifest.

    Parameters
    ----------
    dataset : path
        The dataset folder.
    name : str
        Modality, e.g. ``snps``.
    kind : {"genotype", "binary", "float"}
    participants : iterable of str
        Unique ids, one per row.
    features : FeatureTable
    blocks : iterable of ndarray, shape (rows, n_features)
        Consecutive rows, as :func:`pack_rows` takes them; any block sizes that add up. Or a function that puts shard
        file number n, written by :func:`mrmfast.formats.zarr_shard.write_shard`, at a path; it leaves out one of zeros.
    attributes : dict, optional
        Provenance kept with the modality (rules, thresholds, counts); no ids.
    float_dtype : {"float32", "float16"}
        How a ``float`` modality is kept on disk and in memory.
    packed : bool
        The blocks are packed already, shape (rows, packed width), as :func:`pack_rows` would pack them.

    Raises
    ------
    UserError
        The modality exists already, ids repeat, there are no features, or a value does not fit `float_dtype`.
    """
    # Zarr takes longer to import than many a command needs to notice a mistake.
    import zarr
    from zarr.codecs import ZstdCodec

    from mrmfast.formats.sample_table import write_columns

    final = Path(dataset) / STORE / name
    ids = np.array([str(one) for one in participants], dtype=object)
    if final.exists():
        raise UserError(f"{final}: exists already; remove that folder to make it anew")
    if len(set(ids)) != len(ids):
        raise UserError(f"{name}: {len(ids) - len(set(ids))} participant ids repeat; make ids unique in the source")
    if not len(features) or not len(ids):
        raise UserError(
            f"{name}: nothing to write ({len(ids)} participants, {len(features)} features); check the source"
        )
    aside = Path(dataset) / f".{name}.zarr.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        group = zarr.open_group(aside, mode="w", zarr_format=3)
        group.attrs.update({"kind": kind, "n_features": len(features), **(attributes or {})})
        width = packed_width(kind, len(features))
        chunk, chunks_per_shard = shard_shape(len(ids))
        rows = group.create_array(
            "rows",
            shape=(len(ids), width),
            chunks=(chunk, width),
            shards=(chunk * chunks_per_shard, width),
            dtype=float_dtype if kind == "float" else "uint8",
            compressors=[ZstdCodec(level=ZSTD_LEVEL, checksum=True)],
        )
        if callable(blocks):
            for number in range(-(-len(ids) // (chunk * chunks_per_shard))):
                blocks(number, aside / "rows" / "c" / str(number) / "0")
        else:
            _write_in_whole_shards(
                rows, blocks if packed else (pack_rows(kind, block, float_dtype) for block in blocks)
            )
        write_columns(group, {"participants": ids})
        write_columns(group.create_group("features"), {c: getattr(features, c) for c in FEATURE_COLUMNS})
        digest = seal(aside)
        if not (Path(dataset) / STORE / "zarr.json").exists():
            with write_aside(Path(dataset) / STORE / "zarr.json") as file:
                file.write(ROOT_METADATA)
        rename_directory(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    with updating(dataset) as manifest:
        manifest.genetics[name] = {
            "kind": kind,
            "n_features": len(features),
            "participants": len(ids),
            "sha256": digest,
        }


def _write_in_whole_shards(rows: Any, blocks: Iterable[np.ndarray]) -> None:
    """Collect blocks to whole shard files: a partial write of a shard rewrites all of it."""
    per_shard = rows.shards[0]
    held: list[np.ndarray] = []
    start = 0
    for block in blocks:
        assert block.shape[1] == rows.shape[1] and block.dtype == rows.dtype, "block is not packed like its modality"
        held.append(block)
        if sum(map(len, held)) >= per_shard:
            joined = np.concatenate(held)
            whole = len(joined) // per_shard * per_shard
            rows[start : start + whole] = joined[:whole]
            start += whole
            # A copy: a view would keep the whole of `joined` alive until the next shard is full.
            held = [joined[whole:].copy()]
    rest = np.concatenate(held) if held else np.empty((0, rows.shape[1]), rows.dtype)
    assert start + len(rest) == rows.shape[0], f"{start + len(rest)} rows written, {rows.shape[0]} participants"
    if len(rest):
        rows[start:] = rest
