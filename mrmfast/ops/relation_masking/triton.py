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
    """Block sizes and options of one kernel.

    Attributes
    ----------
    constants : dict
        ROWS, KEYS, WIDTH, and of a row kernel RESIDENT and PART.
    options : dict
        num_warps, num_stages.
    """

    constants: dict[str, Any]
    options: dict[str, Any]


def row_tiles(keys: int, width: int, dtype: torch.dtype, *, backward: bool) -> Tiles:
    """Choose for the kernels that hold whole rows of logits; tests compile them for compute capability 8.0 and 9.0.

    K and V stay on chip between blocks of rows where shared memory takes them, else are read PART columns at a time.
    """
    padded, columns = padded_to(keys), padded_to(width)
    size = padded * columns * dtype.itemsize
    wide = dtype.itemsize == 4  # no tensor cores: operands lie in registers
    resident = not wide and size <= (1 << 15 if backward else 1 << 16)
    part = columns if resident else max(16, min(columns, (1 << 14 if wide else 1 << 15) // (padded * dtype.itemsize)))
    rows = 8 if wide and padded > 512 else 16
    if not wide and (padded <= 64 or (backward and resident)):
        rows = 32
    constants = {"RESIDENT": resident, "ROWS": rows, "KEYS": padded, "WIDTH": columns, "PART": part}
    return Tiles(constants, {"num_warps": 4 if padded <= 64 else 8, "num_stages": 2 if resident else 1})


def key_tiles(width: int, dtype: torch.dtype) -> Tiles:
    """Choose for the kernel that holds dK and dV of a block of keys."""
    columns, wide = padded_to(width), dtype.itemsize == 4
    narrow = wide or columns > 64
    constants = {"ROWS": 16 if narrow else 32, "KEYS": 32 if narrow else 64, "WIDTH": columns}
    return Tiles(constants, {"num_warps": 8 if wide else 4, "num_stages": 1 if narrow else 2})


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
            f"{keys} keys of width {width}: the GPU path takes up to {LARGEST_KEYS} keys and width {LARGEST_WIDTH}; "
            "take more heads, fewer tokens, or reference.relation_attention"
        )
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: the GPU path takes one of float32, float16, bfloat16; "
            "convert them, or take reference.relation_attention"
        )
    count = masked_count(ratio, keys)
    outputs: tuple[Tensor | None, Tensor | None] = RelationAttention.apply(q, k, v, count, intact, masked)
    return outputs


class RelationAttention(torch.autograd.Function):
    """The kernels as one differentiable function."""

    @staticmethod
    def forward(
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
        plan = row_tiles(keys, width, q.dtype, backward=False)
        blocks, programs = row_blocks(batch * heads, queries, plan.constants["ROWS"])
        some = next((out for out in outputs if out is not None), q)
        if q.numel() and (intact or masked):  # a grid of nothing is no launch
            with torch.cuda.device_of(q):
                kernels.forward_kernel[(batch * heads * programs,)](
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
                    programs,
                    queries,
                    keys,
                    width,
                    count,
                    scale(width),
                    blocks,
                    INTACT=intact,
                    MASKED=masked,
                    **plan.constants,
                    **plan.options,
                )
        return outputs[0], outputs[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, intact: Tensor | None, masked: Tensor | None) -> tuple[Tensor | None, ...]:
        """Launch the row kernel, which gives dQ and delta, then the key kernel."""
        q, k, v, lse, threshold = ctx.saved_tensors
        if intact is None and masked is None:
            return None, None, None, None, None, None
        if not q.numel():
            return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), None, None, None
        batch, heads, queries, width = q.shape
        keys = k.shape[2]
        plan, key_plan = row_tiles(keys, width, q.dtype, backward=True), key_tiles(width, q.dtype)
        blocks, programs = row_blocks(batch * heads, queries, plan.constants["ROWS"])
        dq, dk, dv = heads_last(q), heads_last(k), heads_last(v)
        delta = torch.empty_like(lse)
        some = intact if intact is not None else masked
        assert some is not None
        gradients = [some if gradient is None else gradient for gradient in (intact, masked)]
        tensors = [q, k, v, *gradients, lse, threshold, delta]
        strides = [stride for tensor in (q, k, v, *gradients) for stride in tensor.stride()]
        sizes = [queries, keys, width, scale(width)]
        key_blocks = triton.cdiv(keys, key_plan.constants["KEYS"])
        wanted = {"INTACT": intact is not None, "MASKED": masked is not None}
        with torch.cuda.device_of(q):
            kernels.query_gradient_kernel[(batch * heads * programs,)](
                *tensors,
                dq,
                *strides,
                *dq.stride()[:3],
                heads,
                programs,
                *sizes,
                blocks,
                **wanted,
                **plan.constants,
                **plan.options,
            )
            kernels.key_gradient_kernel[(batch * heads * key_blocks,)](
                *tensors,
                dk,
                dv,
                *strides,
                *dk.stride()[:3],
                heads,
                key_blocks,
                *sizes,
                **wanted,
                **key_plan.constants,
                **key_plan.options,
            )
        return dq, dk, dv, None, None, None


def heads_last(like: Tensor) -> Tensor:
    """Return an empty (B, H, N, d) that lies in memory as (B, N, H, d)."""
    batch, heads, tokens, width = like.shape
    return torch.empty(batch, tokens, heads, width, dtype=like.dtype, device=like.device).transpose(1, 2)


def row_blocks(heads: int, queries: int, rows: int) -> tuple[int, int]:
    """Return how many blocks of rows a program takes, and how many programs a head; each loads K and V once."""
    total = triton.cdiv(queries, rows)
    blocks = total if heads >= MANY_HEADS else 1
    return blocks, triton.cdiv(total, blocks)


def scale(width: int) -> float:
    """Return 1 / sqrt(d), for powers of two."""
    return math.log2(math.e) / math.sqrt(width)
