"""CPU path: ``cpu.cpp``, forward and backward fused, in float32 arithmetic, compiled at first use.

Relations under 1.2e-38 are 0. Saved for the backward pass: q, k, v and three numbers a row (maximum, inverse of the
softmax's sum, threshold). ``operators.py`` allocates and calls.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache, lru_cache
from pathlib import Path
from statistics import NormalDist

import torch
from torch import Tensor

from mrmfast import native
from mrmfast.native import INT64, POINTER

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fopenmp")
SOURCE = Path(__file__).with_name("cpu.cpp")
HEADERS = tuple(SOURCE.with_name(name) for name in ("cpu_gemm.h", "cpu_rows.h"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # the last is widened by the caller
LEAST_FLOP = 1 << 20  # a thread; below this, about 10 us, waking it costs more than it gives


def supports(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether this path can take such tensors; warns once where the kernel cannot be built."""
    same = (
        q.dtype == k.dtype == v.dtype and q.shape[:2] == k.shape[:2] == v.shape[:2] and q.ndim == k.ndim == v.ndim == 4
    )
    return q.dtype in DTYPES and same and min(*q.shape, *k.shape, *v.shape) > 0 and available()


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the compiled path can be used; warns once where it cannot."""
    return library() is not None


class _Tensor4(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_ssize_t * 4))


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "queries", "keys", "width", "value_width", "threads")),
        *(("count", ctypes.c_int64), ("quantile", ctypes.c_float), ("density", ctypes.c_float)),
        *(("scale", ctypes.c_float), ("is_bfloat16", ctypes.c_int32)),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled kernel, building it first; None (and a warning) without a C++ compiler."""
    otherwise = "Relation masking 2 to 8 times slower, with N x N matrices in memory,"
    signature = (POINTER, POINTER, POINTER, POINTER, INT64), None
    functions: dict[str, native.Signature] = {"relation_forward": signature, "relation_backward": signature}
    functions["relation_workspace"] = (POINTER,), INT64
    return native.load(
        SOURCE, FLAGS, headers=HEADERS, name="relation_masking", otherwise=otherwise, functions=functions
    )


@lru_cache(1024)
def _normal_guess(count: int, keys: int) -> tuple[float, float]:
    """Return the quantile above which `count` of `keys` normal scores lie, and by how much it falls for one more."""
    if not 0 < count < keys:
        return 0.0, 0.0
    normal = NormalDist()
    quantile = normal.inv_cdf(1 - (count - 0.5) / keys)
    return quantile, 1 / (keys * normal.pdf(quantile))


def _run(
    name: str, q: Tensor, k: Tensor, v: Tensor, count: int, rows: Tensor, others: tuple[Tensor | None, ...]
) -> None:
    kernel = library()
    assert kernel is not None, "ask supports() first"
    assert rows.is_contiguous()
    batch, heads, queries, width = q.shape
    work = 2 * batch * heads * queries * k.shape[2] * (width + v.shape[3])
    threads = max(1, min(torch.get_num_threads(), batch * heads, work // LEAST_FLOP))
    problem = _Problem(batch, heads, queries, k.shape[2], width, v.shape[3], threads, count)
    problem.quantile, problem.density = _normal_guess(count, k.shape[2])
    problem.scale, problem.is_bfloat16 = 1 / math.sqrt(width), q.dtype == torch.bfloat16
    tensors = (_Tensor4 * 8)()
    for slot, tensor in zip(tensors, (q, k, v, *others), strict=False):
        if tensor is not None:
            slot.data, slot.stride = tensor.data_ptr(), tensor.stride()
    floats = kernel.relation_workspace(ctypes.byref(problem))
    memory = torch.empty(threads * floats)
    # ctypes releases the interpreter lock while C runs; the threads are those of torch's own OpenMP.
    getattr(kernel, name)(ctypes.byref(problem), tensors, rows.data_ptr(), memory.data_ptr(), floats)


def forward(
    q: Tensor, k: Tensor, v: Tensor, count: int, rows: Tensor, intact: Tensor | None, masked: Tensor | None
) -> None:
    """Write R V to `intact` and R^M V to `masked`, each (B, H, N, d) or None, and to `rows` what backward needs."""
    _run("relation_forward", q, k, v, count, rows, (intact, masked))


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    d_intact: Tensor | None,
    d_masked: Tensor | None,
    count: int,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Write the gradients of q, k and v to `dq`, `dk` and `dv`; None is the gradient of an output that was not made."""
    _run("relation_backward", q, k, v, count, rows, (d_intact, d_masked, dq, dk, dv))
