"""Sparse weights x genotypes in C (``sparse_product.c``): one score uses a few per cent of the variants of all scores.

Example: for 481 scores of 2,000 variants each on 50,000 variants, a dense product does 25 times the work. The dense
product in :mod:`.score_pass` is the reference, serves dense weights, and works without a compiler.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from mrmfast import native
from mrmfast.arithmetic import ceil_div
from mrmfast.native import INT64, POINTER

FLAGS = ("-O3", "-std=c11", "-march=native", "-Wno-psabi")
SOURCE = Path(__file__).with_name("sparse_product.c")
FIT: native.Signature = ((POINTER, INT64, INT64, INT64, POINTER, POINTER, POINTER), None)
ADD: native.Signature = (
    (POINTER, INT64, INT64, INT64, POINTER, INT64, POINTER, POINTER, POINTER, POINTER, POINTER, INT64),
    INT64,
)
FUNCTIONS = {"fit_int8": FIT, "fit_float32": FIT, "add_int8": ADD, "add_float32": ADD}
TILE = 32  # participants per tile, as in C
# The dense product is faster above this share of non-zero weights.
MOST_DENSE = 0.2


def takes(values: np.ndarray) -> bool:
    """Whether the compiled path accepts these values: int8 or float32, with contiguous rows."""
    kind = values.dtype in (np.int8, np.float32) and values.strides[1] == values.itemsize
    return kind and library() is not None


def fit(values: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count the values of chosen participants.

    Parameters
    ----------
    values : ndarray of int8 or float32, shape (variants, people)
        Negative or NaN is missing; :func:`takes` must be true.
    chosen : ndarray of bool, shape (people,)

    Returns
    -------
    total : ndarray of float64, shape (variants,)
    known : ndarray of int64, shape (variants,)
    """
    total, known = np.empty(len(values)), np.empty(len(values), dtype=np.int64)
    flags = np.ascontiguousarray(chosen, dtype=np.uint8)
    function = getattr(library(), f"fit_{values.dtype}")

    def fit_rows(first: int, last: int) -> None:
        part = values[first:last]
        pointers = (flags.ctypes.data, total[first:].ctypes.data, known[first:].ctypes.data)
        function(part.ctypes.data, part.strides[0] // part.itemsize, *part.shape, *pointers)

    _share(fit_rows, len(values), 16)
    return total, known


def add(
    values: np.ndarray,
    expected: np.ndarray,
    scores: np.ndarray,
    begin: np.ndarray,
    variant: np.ndarray,
    weight: np.ndarray,
    sums: np.ndarray,
) -> int:
    """Add ``weights @ values`` to sums, with `expected` for missing values.

    Parameters
    ----------
    values : ndarray of int8 or float32, shape (variants, people)
        As in :func:`fit`.
    expected : ndarray of float64, shape (variants,)
    scores : ndarray of int64, shape (n,)
        Rows of `sums`, distinct.
    begin : ndarray of int64, shape (n + 1,)
        Weights ``begin[i]:begin[i + 1]`` belong to ``scores[i]``.
    variant : ndarray of int32, shape (weights,)
        Rows of `values`.
    weight : ndarray of float64, shape (weights,)
    sums : ndarray of float64, shape (all scores, people)
        Changed in place.

    Returns
    -------
    int
        Number of missing values.
    """
    function = getattr(library(), f"add_{values.dtype}")
    expected, weight = np.ascontiguousarray(expected), np.ascontiguousarray(weight, dtype=np.float64)
    scores, begin = (np.ascontiguousarray(x, dtype=np.int64) for x in (scores, begin))
    variant = np.ascontiguousarray(variant, dtype=np.int32)
    missing = []

    def add_tiles(first: int, last: int) -> None:
        part, into = values[:, first * TILE : last * TILE], sums[:, first * TILE : last * TILE]
        missing_in_part = function(
            *(part.ctypes.data, part.strides[0] // part.itemsize, *part.shape, expected.ctypes.data),
            *(len(scores), begin.ctypes.data, variant.ctypes.data, weight.ctypes.data, scores.ctypes.data),
            *(into.ctypes.data, into.strides[0] // into.itemsize),
        )
        if missing_in_part < 0:
            raise MemoryError("no memory for a tile of genotypes")
        missing.append(missing_in_part)

    _share(add_tiles, ceil_div(values.shape[1], TILE), 1)
    return sum(missing)


def _share(work: Callable[[int, int], None], count: int, least: int) -> None:
    """Call ``work(first, last)`` for ranges of 0..count in threads; ctypes releases the interpreter lock."""
    threads = max(1, min(_threads(), count // least))
    edges = [count * number // threads for number in range(threads + 1)]
    list(_pool().map(work, edges[:-1], edges[1:]))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), thread_name_prefix="mrmfast-scores")


def _threads() -> int:
    return len(os.sched_getaffinity(0))


@cache
def library() -> ctypes.CDLL | None:
    """Compile and load the kernel; None (and a warning) without a C compiler."""
    return native.load(
        SOURCE, FLAGS, name="sparse_product", otherwise="Scoring several times slower", functions=FUNCTIONS
    )
