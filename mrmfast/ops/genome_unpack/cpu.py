"""CPU path: ``cpu.c``, compiled at first use and kept in the machine's cache; rows are shared among torch's threads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from mrmfast import native
from mrmfast.batch import ModalitySpec
from mrmfast.native import POINTER, SIZE

FLAGS = ("-O3", "-std=c11")
SOURCE = Path(__file__).with_name("cpu.c")
LEAST_ROWS = 16  # per thread; below this the hand-over costs more than it gives


def unpack_genome(
    packed: Sequence[Tensor], present: Tensor, modalities: Sequence[ModalitySpec], fill: Tensor
) -> tuple[Tensor, Tensor]:
    """Join packed modalities to x_G: as :func:`mrmfast.ops.genome_unpack.reference.unpack_genome`, bit for bit."""
    kernel = library()
    assert kernel is not None, "ask available() first"
    present, fill = present.contiguous(), fill.float().contiguous()
    rows, features = present.shape[0], sum(count for _, _, count in modalities)
    x_BF = torch.empty(rows, features, dtype=torch.float32)
    observed_BF = torch.empty(rows, features, dtype=torch.bool)
    parts = [
        (part.float() if encoding == "float" else part)
        for part, (_, encoding, _) in zip(packed, modalities, strict=True)
    ]
    parts = [part if part.stride(1) == 1 else part.contiguous() for part in parts]

    def unpack(first: int, last: int) -> None:
        start = 0
        for number, (part, (_, encoding, count)) in enumerate(zip(parts, modalities, strict=True)):
            # Pointers are computed here because ctypes takes addresses; every tensor outlives the call.
            getattr(kernel, f"unpack_{encoding}")(
                part.data_ptr() + first * part.stride(0) * part.element_size(),
                part.stride(0),
                present.data_ptr() + first * present.stride(0) + number,
                present.stride(0),
                last - first,
                count,
                fill.data_ptr() + 4 * start,
                x_BF.data_ptr() + 4 * (first * features + start),
                observed_BF.data_ptr() + first * features + start,
                features,
            )
            start += count

    threads = max(1, min(torch.get_num_threads(), rows // LEAST_ROWS))
    edges = [rows * number // threads for number in range(threads + 1)]
    if threads == 1:
        unpack(0, rows)
    else:
        # ctypes releases the interpreter lock while C runs.
        list(_pool().map(unpack, edges[:-1], edges[1:]))
    return x_BF, observed_BF


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the compiled path can be used; warns once where it cannot."""
    return library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled kernel, building it first; None (and a warning) without a C compiler."""
    signature = (POINTER, SIZE, POINTER, SIZE, SIZE, SIZE, POINTER, POINTER, POINTER, SIZE), None
    functions = {f"unpack_{encoding}": signature for encoding in ("genotype", "binary", "float")}
    otherwise = "Unpacking about ten times slower"
    return native.load(SOURCE, FLAGS, name="genome_unpack", otherwise=otherwise, functions=functions)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="mrmfast-unpack")
