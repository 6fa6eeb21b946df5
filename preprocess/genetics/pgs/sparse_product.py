"""Sparse weights x genotypes in C (``sparse_product.c``): a score uses a few per cent of all variants used.

A dense product multiplies 481 scores of 2,000 variants each by 50,000 variants, 25 times the work. The dense one in
:mod:`.score_pass` is the reference, serves dense weights, and works without a compiler.
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
from mrmfast.native import INT64, POINTER

FLAGS = ("-O3", "-std=c11", "-march=native", "-Wno-psabi")
SOURCE = Path(__file__).with_name("sparse_product.c")
FIT: native.Signature = ((POINTER, INT64, INT64, INT64, POINTER, POINTER, POINTER), None)
ADD: native.Signature = (
    (POINTER, INT64, INT64, INT64, POINTER, INT64, POINTER, POINTER, POINTER, POINTER, POINTER, INT64),
    INT64,
)
FUNCTIONS = {"fit_int8": FIT, "fit_float32": FIT, "add_int8": ADD, "add_float32": ADD}
TILE = 32  # people, as in C
# Above this share of weights that are not zero the dense product is faster.
MOST_DENSE = 0.2


def takes(values: np.ndarray) -> bool:
    """Whether there is a compiled path for such values: int8 or float32, each row without gaps."""
    kind = values.dtype in (np.int8, np.float32) and values.strides[1] == values.itemsize
    return kind and library() is not None


def fit(values: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count the values of chosen people.

    Parameters
    ----------
    values : ndarray of int8 or float32, shape (variants, people)
        Negative or NaN is missing; ask :func:`takes` first.
    chosen : ndarray of bool, shape (people,)

    Returns
    -------
    total : ndarray of float64, shape (variants,)
    known : ndarray of int64, shape (variants,)
    """
    total, known = np.empty(len(values)), np.empty(len(values), dtype=np.int64)
    flags = np.ascontiguousarray(chosen, dtype=np.uint8)
    function = getattr(library(), f"fit_{values.dtype}")

    def some(first: int, last: int) -> None:
        part = values[first:last]
        places = (flags.ctypes.data, total[first:].ctypes.data, known[first:].ctypes.data)
        function(part.ctypes.data, part.strides[0] // part.itemsize, *part.shape, *places)

    _share(some, len(values), 16)
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
        Rows of `sums`, each once.
    begin : ndarray of int64, shape (n + 1,)
        Weights ``begin[i]:begin[i + 1]`` belong to ``scores[i]``.
    variant : ndarray of int32, shape (weights,)
        Rows of `values`.
    weight : ndarray of float64, shape (weights,)
    sums : ndarray of float64, shape (all scores, people)
        Changed.

    Returns
    -------
    int
        How many values were missing.
    """
    function = getattr(library(), f"add_{values.dtype}")
    expected, weight = np.ascontiguousarray(expected), np.ascontiguousarray(weight, dtype=np.float64)
    scores, begin = (np.ascontiguousarray(x, dtype=np.int64) for x in (scores, begin))
    variant = np.ascontiguousarray(variant, dtype=np.int32)
    missing = []

    def some(first: int, last: int) -> None:
        part, into = values[:, first * TILE : last * TILE], sums[:, first * TILE : last * TILE]
        found = function(
            *(part.ctypes.data, part.strides[0] // part.itemsize, *part.shape, expected.ctypes.data),
            *(len(scores), begin.ctypes.data, variant.ctypes.data, weight.ctypes.data, scores.ctypes.data),
            *(into.ctypes.data, into.strides[0] // into.itemsize),
        )
        if found < 0:
            raise MemoryError("no memory for a tile of genotypes")
        missing.append(found)

    _share(some, (values.shape[1] + TILE - 1) // TILE, 1)
    return sum(missing)


def _share(some: Callable[[int, int], None], count: int, least: int) -> None:
    """Call ``some(first, last)`` for runs of 0..count in threads; ctypes lets go of the interpreter lock."""
    threads = max(1, min(_threads(), count // least))
    edges = [count * number // threads for number in range(threads + 1)]
    list(_pool().map(some, edges[:-1], edges[1:]))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_threads(), thread_name_prefix="mrmfast-scores")


def _threads() -> int:
    return len(os.sched_getaffinity(0))


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled kernel, building it first; None (and a warning) without a C compiler."""
    return native.load(
        SOURCE, FLAGS, name="sparse_product", otherwise="Scoring several times slower", functions=FUNCTIONS
    )
