"""CPU path: ``cpu.cpp``, forward and backward fused, in float32 arithmetic, compiled at first use; operators of torch.

The operators ``mrmfast::relation_forward`` and ``relation_backward`` are opaque to ``torch.compile``, which knows the
shapes and strides of what they return. Saved for the backward pass: q, k, v and three numbers a row.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache, lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from mrmfast import native
from mrmfast.ops.relation_masking.reference import masked_count

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fopenmp")
SOURCE = Path(__file__).with_name("cpu.cpp")
HEADERS = tuple(SOURCE.with_name(name) for name in ("cpu_gemm.h", "cpu_rows.h"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROW = 3  # maximum, inverse of the softmax's sum, threshold


def relation_attention(
    q: Tensor, k: Tensor, v: Tensor, ratio: float, *, intact: bool = True, masked: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Attend with R and R^M: as :func:`mrmfast.ops.relation_masking.reference.relation_attention`, in float32.

    Parameters
    ----------
    q, k, v, ratio, intact, masked
        See there; ask :func:`supports` first.

    Returns
    -------
    intact, masked : Tensor or None, (B, H, N, d)
        Laid out as (B, N, H, d) in memory, so that joining the heads copies nothing. Relations under 1.2e-38 are 0.
    """
    if q.dtype == torch.float16:  # rare on CPUs: not worth instructions of its own
        wide = relation_attention(q.float(), k.float(), v.float(), ratio, intact=intact, masked=masked)
        return tuple(out if out is None else out.half() for out in wide)  # type: ignore[return-value]
    intact_out, masked_out, _ = _forward(q, k, v, masked_count(ratio, k.shape[-2]), intact, masked)
    return (intact_out if intact else None), (masked_out if masked else None)


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
    loaded = native.load(SOURCE, FLAGS, headers=HEADERS, name="relation_masking", otherwise=otherwise)
    if loaded is None:
        return None
    pointer = ctypes.c_void_p
    for function in (loaded.relation_forward, loaded.relation_backward):
        function.argtypes = [pointer, pointer, pointer, pointer, ctypes.c_int64]
        function.restype = None
    loaded.relation_workspace.argtypes = [pointer]
    loaded.relation_workspace.restype = ctypes.c_int64
    return loaded


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
    batch, heads, queries, width = q.shape
    threads = max(1, min(torch.get_num_threads(), batch * heads))
    problem = _Problem(batch, heads, queries, k.shape[2], width, v.shape[3], threads, count)
    problem.quantile, problem.density = _normal_guess(count, k.shape[2])
    problem.scale, problem.is_bfloat16 = 1 / math.sqrt(width), q.dtype == torch.bfloat16
    tensors = (_Tensor4 * 8)()
    for place, tensor in zip(tensors, (q, k, v, *others), strict=False):
        if tensor is not None:
            place.data, place.stride = tensor.data_ptr(), tensor.stride()
    floats = kernel.relation_workspace(ctypes.byref(problem))
    memory = torch.empty(threads * floats)
    # ctypes lets go of the interpreter lock while C runs; the threads are those of torch's own OpenMP.
    getattr(kernel, name)(ctypes.byref(problem), tensors, rows.data_ptr(), memory.data_ptr(), floats)


def _empty(like: Tensor, rows: int, width: int) -> Tensor:
    """Return (B, H, rows, width) over memory laid out as (B, rows, H, width)."""
    return like.new_empty(like.shape[0], rows, like.shape[1], width).transpose(1, 2)


def _outputs(q: Tensor, v: Tensor, intact: bool, masked: bool) -> tuple[Tensor, Tensor, Tensor]:
    wanted = (_empty(q, q.shape[2], v.shape[3]) if want else q.new_empty(0) for want in (intact, masked))
    return (*wanted, q.new_empty(*q.shape[:3], ROW, dtype=torch.float32))  # type: ignore[return-value]


def _gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(_empty(x, x.shape[2], x.shape[3]) for x in (q, k, v))  # type: ignore[return-value]


@torch.library.custom_op("mrmfast::relation_forward", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor, count: int, intact: bool, masked: bool) -> tuple[Tensor, Tensor, Tensor]:
    intact_out, masked_out, rows = _outputs(q, v, intact, masked)
    _run("relation_forward", q, k, v, count, rows, (intact_out if intact else None, masked_out if masked else None))
    return intact_out, masked_out, rows


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, count: int, intact: bool, masked: bool) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(q, v, intact, masked)


@torch.library.custom_op("mrmfast::relation_backward", mutates_args=(), device_types="cpu")
def _backward(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, d_intact: Tensor | None, d_masked: Tensor | None, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _gradients(q, k, v)
    _run("relation_backward", q, k, v, count, rows, (d_intact, d_masked, *gradients))
    return gradients


@_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, d_intact: Tensor | None, d_masked: Tensor | None, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(q, k, v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, ctx.count, ctx.intact, ctx.masked = inputs
    ctx.save_for_backward(q, k, v, output[2])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_intact: Tensor | None, d_masked: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    d_intact, d_masked = (d_intact if ctx.intact else None), (d_masked if ctx.masked else None)
    if d_intact is None and d_masked is None:
        return (None,) * 6
    q, k, v, rows = ctx.saved_tensors
    return (*_backward(q, k, v, rows, d_intact, d_masked, ctx.count), None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
