"""The genetics of a dataset on disk: a Zarr v3 group per modality, sample-major, rows packed.

Schema (``genetics.zarr/NAME``, documented in ``docs/formats.md``): ``participants`` (strings), ``rows`` (packed
bytes, float32 or float16), ``features/*`` (one column per property), ``checksums.json`` (SHA-256 of every file, its
own in the manifest). Encodings (the attribute ``kind`` on disk): ``genotype`` is 2 bits a feature (0, 1, 2 copies, 3
missing; four features a byte, lowest bits first), ``binary`` 1 bit (lowest first), ``float`` a number with NaN for
missing. The writer is :mod:`mrmfast.formats.modality_writer`, the reader :mod:`mrmfast.data.genetics.store`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mrmfast.errors import UserError

Encoding = Literal["genotype", "binary", "float"]
FloatDtype = Literal["float32", "float16"]
STORE = "genetics.zarr"
# Fixed bytes, not written by zarr, so that `check` can compare them.
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
    """Columns of length ``n_features``; the features of a group are consecutive.

    Attributes
    ----------
    name, group : ndarray of str
        The group becomes one genome token (docs/methods/mrm.md#encoders).
    fill : ndarray of float32
        Replacement of missing values on input, in stored units.
    mean, scale : ndarray of float32
        stored = (raw - mean) / scale; 0 and 1 for features that are not standardised.
    chromosome, reference, alternative : ndarray of str
        Empty strings for features without them.
    position : ndarray of int64
        0 for features without a position.
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
        """Build a table from names and groups; missing columns get their neutral value (scale 1, else 0 or "")."""
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
        assert len(built.groups()) == len(set(built.group)), "features of one group must be consecutive"
        return built

    def __len__(self) -> int:
        return len(self.name)

    def groups(self) -> list[tuple[str, int]]:
        """Return (group, number of features) in order."""
        starts = np.flatnonzero(np.r_[True, self.group[1:] != self.group[:-1]]) if len(self) else np.array([], int)
        sizes = np.diff(np.r_[starts, len(self)])
        return [(str(self.group[start]), int(size)) for start, size in zip(starts, sizes, strict=True)]


def shard_shape(participants: int) -> tuple[int, int]:
    """Return rows per chunk and chunks per shard file of ``rows``."""
    chunk = min(ROWS_PER_CHUNK, participants)
    return chunk, min(CHUNKS_PER_SHARD, (participants + chunk - 1) // chunk)


def packed_width(encoding: Encoding, n_features: int) -> int:
    """Return the number of columns of ``rows``: bytes for packed encodings, features for float."""
    return {"genotype": (n_features + 3) // 4, "binary": (n_features + 7) // 8, "float": n_features}[encoding]


def pack_rows(encoding: Encoding, values: np.ndarray, float_dtype: FloatDtype = "float32") -> np.ndarray:
    """Pack values of one modality.

    Parameters
    ----------
    encoding : {"genotype", "binary", "float"}
    values : ndarray, shape (participants, n_features)
        genotype: 0, 1, 2, or negative for missing; binary: 0 or 1; float: numbers, NaN for missing.
    float_dtype : {"float32", "float16"}
        Stored type of ``float``; float16 has 3 significant digits and a maximum of 65504.

    Returns
    -------
    ndarray, shape (participants, packed_width(encoding, n_features))
        uint8, or `float_dtype` for ``float``.

    Raises
    ------
    UserError
        A value outside the range of its encoding.
    """
    if encoding == "float":
        if float_dtype == "float16" and np.nanmax(np.abs(values), initial=0) > np.finfo(np.float16).max:
            raise UserError("float values beyond 65504 do not fit float16; standardise them or keep float32")
        return np.ascontiguousarray(values, dtype=float_dtype)
    top = 2 if encoding == "genotype" else 1
    if values.size and (values.max() > top or (encoding == "binary" and values.min() < 0)):
        raise UserError(f"{encoding} values must lie in 0..{top}; found {int(values.min())}..{int(values.max())}")
    if encoding == "binary":
        return np.packbits(values.astype(np.uint8), axis=1, bitorder="little")
    codes = np.where(values < 0, np.uint8(MISSING_GENOTYPE), values.astype(np.uint8))
    packed = np.zeros((len(codes), packed_width(encoding, codes.shape[1])), dtype=np.uint8)
    for offset in range(4):
        part = codes[:, offset::4]
        packed[:, : part.shape[1]] |= part << (2 * offset)
    return packed
