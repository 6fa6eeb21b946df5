"""The loops of :mod:`.twobit` in C (``twobit.c``), compiled on first use; the loops release the interpreter lock.

Every function equals the function of the same name in :mod:`.twobit`, which is the fallback without a compiler.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

from mrmfast import native
from mrmfast.native import INT, INT64, POINTER
from preprocess.genetics.genotypes import twobit

FLAGS = ("-O3", "-std=c11", "-march=native")
SOURCE = Path(__file__).with_name("twobit.c")
FUNCTIONS: dict[str, native.Signature] = {
    "read_rows": ((INT, INT64, INT64, POINTER, INT64, INT64, POINTER, INT64), INT64),
    "from_plink1": ((POINTER, INT64, INT64, INT64, POINTER), None),
    "count_bits": ((POINTER, INT64, INT64, INT64, POINTER, POINTER), None),
    "transpose": ((POINTER, INT64, INT64, INT64, POINTER, INT64), None),
}


def from_plink1(raw: np.ndarray, count_a1: np.ndarray) -> np.ndarray:
    """Equals :func:`.twobit.from_plink1`; `raw` may be overwritten and returned."""
    kernel = library()
    if kernel is None or not _rows_are_plain(raw):
        return twobit.from_plink1(raw, count_a1)
    flags = np.ascontiguousarray(count_a1, dtype=np.uint8)
    kernel.from_plink1(raw.ctypes.data, raw.strides[0], *raw.shape, flags.ctypes.data)
    return raw


def count(packed: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Equals :func:`.twobit.count`."""
    kernel = library()
    if kernel is None or not _rows_are_plain(packed):
        return twobit.count(packed, chosen)
    bits, chosen = np.empty((len(packed), 3), dtype=np.int64), np.ascontiguousarray(chosen)
    kernel.count_bits(packed.ctypes.data, packed.strides[0], *packed.shape, chosen.ctypes.data, bits.ctypes.data)
    return twobit.counts_of_bits(bits, chosen)


def transpose(packed: np.ndarray, out: np.ndarray) -> None:
    """Equals :func:`.twobit.transpose`."""
    kernel = library()
    if kernel is None or not (_rows_are_plain(packed) and _rows_are_plain(out)):
        twobit.transpose(packed, out)
        return
    shape = len(packed), len(out)
    kernel.transpose(packed.ctypes.data, packed.strides[0], *shape, out.ctypes.data, out.strides[0])


def read_rows(descriptor: int, offset: int, row_bytes: int, columns: np.ndarray, out: np.ndarray) -> int | None:
    """Read bytes of selected rows of a file with rows of equal length.

    Parameters
    ----------
    descriptor : int
        An open file.
    offset : int
        First byte to read of row 0.
    row_bytes : int
    columns : ndarray of int64, shape (n,)
        Row numbers.
    out : ndarray of uint8, shape (n, bytes)
        Written.

    Returns
    -------
    int or None
        Number of completely read rows; None without the compiled path.
    """
    kernel = library()
    if kernel is None or not _rows_are_plain(out):
        return None
    columns = np.ascontiguousarray(columns, dtype=np.int64)
    length, width = out.shape
    return int(
        kernel.read_rows(
            descriptor, offset, row_bytes, columns.ctypes.data, length, width, out.ctypes.data, out.strides[0]
        )
    )


def _rows_are_plain(array: np.ndarray) -> bool:
    """Whether the bytes of each row are contiguous, as the C functions require."""
    return array.dtype == np.uint8 and (array.shape[1] <= 1 or array.strides[1] == 1)


@cache
def library() -> ctypes.CDLL | None:
    """Compile and load the kernel; None (and a warning) without a C compiler."""
    return native.load(
        SOURCE, FLAGS, name="twobit", otherwise="Packing genotypes several times slower", functions=FUNCTIONS
    )
