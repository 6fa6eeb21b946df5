"""GPU path: fused forward and backward, both outputs in one pass, the row's threshold found on chip."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from mrmfast.ops.relation_masking import triton_kernels as kernels
from mrmfast.ops.relation_masking.reference import masked_count

LARGEST_KEYS, LARGEST_WIDTH = 1024, 128
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Below so many samples x heads, a head's rows are shared among programs: an H100 has 132 multiprocessors.
MANY_HEADS = 512


class Tiles(NamedTuple):
    """Block sizes: rows of a row kernel and its warps; rows, keys and warps of the key-gradient kernel."""

    rows: int
    warps: int
    key_rows: int
    key_keys: int
    key_warps: int


def tiles(keys: int, width: int, dtype: torch.dtype) -> Tiles:
    """Choose block sizes that compile without spills for compute capability 8.0 and 9.0 (tests say for which shapes)."""
    padded = padded_to(keys)
    return Tiles(rows=32 if padded <= 256 else 16, warps=8 if padded > 64 else 4, key_rows=32, key_keys=64, key_warps=4)


def padded_to(size: int) -> int:
    """Return the power of two, at least 16, that a tile's side takes."""
    return max(16, triton.next_power_of_2(size))


def relation_attention(
    q: Tensor, k: Tensor, v: Tensor, ratio: float, *, intact: bool = True, masked: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Attend with R and R^M: as :func:`mrmfast.ops.relation_masking.reference.relation_attention`, on one GPU.

    Parameters
    ----------
    q : Tensor, (B, H, N, d)
    k, v : Tensor, (B, H, M, d)
        float32, float16 or bfloat16, any strides; M up to 1,024 and d up to 128.
    ratio : float
    intact, masked : bool

    Returns
    -------
    intact, masked : Tensor or None, (B, H, N, d)
        In memory (B, N, H, d), so that heads join without a copy; gradients likewise.

    Raises
    ------
    ValueError
        Too many keys, too wide a head, or another dtype.

    Notes
    -----
    Ties, NaN and infinities are treated as in the reference. Products take bfloat16 or float16 operands and add in
    float32; float32 operands are multiplied as such, without TensorFloat-32. Saved for backward: q, k, v and two
    float32 numbers a row.
    """
    keys, width = k.shape[-2:]
    if keys > LARGEST_KEYS or width > LARGEST_WIDTH:
        raise ValueError(
            f"{keys} keys of width {width}: the GPU path takes up to {LARGEST_KEYS} keys and {LARGEST_WIDTH} wide heads; "
            "take more heads, fewer tokens, or reference.relation_attention"
        )
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: the GPU path takes one of float32, float16, bfloat16 for all; "
            "convert them, or take reference.relation_attention"
        )
    count = masked_count(ratio, keys)
    outputs: tuple[Tensor | None, Tensor | None] = RelationAttention.apply(q, k, v, count, intact, masked)  # type: ignore[no-untyped-call]
    return outputs


class RelationAttention(torch.autograd.Function):
    """The kernels as one differentiable function."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, count: int, intact: bool, masked: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Launch the forward kernel."""
        batch, heads, queries, width = q.shape
        keys = k.shape[2]
        outputs = [heads_last(q) if wanted else None for wanted in (intact, masked)]
        lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
        threshold = torch.empty_like(lse)
        ctx.save_for_backward(q, k, v, lse, threshold)
        ctx.set_materialize_grads(False)
        plan = tiles(keys, width, q.dtype)
        blocks, grid = row_grid(batch * heads, queries, plan.rows)
        some = next((out for out in outputs if out is not None), q)
        if q.numel() and (intact or masked):
            with torch.cuda.device_of(q):
                kernels.forward_kernel[grid](
                    q,
                    k,
                    v,
                    *(out if out is not None else some for out in outputs),
                    lse,
                    threshold,
                    *q.stride(),
                    *k.stride(),
                    *v.stride(),
                    *some.stride()[:3],
                    heads,
                    queries,
                    keys,
                    width,
                    count,
                    scale(width),
                    blocks,
                    INTACT=intact,
                    MASKED=masked,
                    ROWS=plan.rows,
                    KEYS=padded_to(keys),
                    WIDTH=padded_to(width),
                    num_warps=plan.warps,
                )
        return outputs[0], outputs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, intact: Tensor | None, masked: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Launch the row kernel, which gives dQ and delta, then the key kernel."""
        q, k, v, lse, threshold = ctx.saved_tensors
        if intact is None and masked is None:
            return None, None, None, None, None, None
        batch, heads, queries, width = q.shape
        keys = k.shape[2]
        plan = tiles(keys, width, q.dtype)
        blocks, grid = row_grid(batch * heads, queries, plan.rows)
        dq, dk, dv = heads_last(q), heads_last(k), heads_last(v)
        delta = torch.empty_like(lse)
        some = intact if intact is not None else masked
        assert some is not None
        gradients = [some if gradient is None else gradient for gradient in (intact, masked)]
        tensors = [q, k, v, *gradients, lse, threshold, delta]
        strides = [stride for tensor in (q, k, v, *gradients) for stride in tensor.stride()]
        sizes = [heads, queries, keys, width, scale(width)]
        wanted = {"INTACT": intact is not None, "MASKED": masked is not None}
        with torch.cuda.device_of(q):
            kernels.query_gradient_kernel[grid](
                *tensors,
                dq,
                *strides,
                *dq.stride()[:3],
                *sizes,
                blocks,
                **wanted,
                ROWS=plan.rows,
                KEYS=padded_to(keys),
                WIDTH=padded_to(width),
                num_warps=plan.warps,
            )
            kernels.key_gradient_kernel[batch * heads, triton.cdiv(keys, plan.key_keys)](
                *tensors,
                dk,
                dv,
                *strides,
                *dk.stride()[:3],
                *sizes,
                **wanted,
                ROWS=plan.key_rows,
                KEYS=plan.key_keys,
                WIDTH=padded_to(width),
                num_warps=plan.key_warps,
            )
        return dq, dk, dv, None, None, None


def heads_last(like: Tensor) -> Tensor:
    """Return an empty (B, H, N, d) that lies in memory as (B, N, H, d)."""
    batch, heads, tokens, width = like.shape
    return torch.empty(batch, tokens, heads, width, dtype=like.dtype, device=like.device).transpose(1, 2)


def row_grid(heads: int, queries: int, rows: int) -> tuple[int, tuple[int, int]]:
    """Return how many blocks of rows a program takes, and the grid: K and V are loaded once a program."""
    total = triton.cdiv(queries, rows)
    blocks = total if heads >= MANY_HEADS else 1
    return blocks, (heads, triton.cdiv(total, blocks))


def scale(width: int) -> float:
    """Return 1 / sqrt(d), for powers of two."""
    return math.log2(math.e) / math.sqrt(width)
