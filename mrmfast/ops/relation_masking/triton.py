"""GPU path: fused forward and backward, both outputs in one pass, the row's threshold found on chip.

``operators.py`` allocates and calls :func:`forward` and :func:`backward`, which launch. Ties, NaN and infinities are
treated as in the reference. Products take bfloat16 or float16 operands and add in float32; float32 operands are
multiplied as such, without TensorFloat-32. Saved for the backward pass: q, k, v and two float32 numbers a row.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mrmfast.ops.relation_masking import triton_kernels as kernels
from mrmfast.ops.relation_masking.triton_parts import TensorView

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


def row_tiles(queries: int, keys: int, width: int, dtype: torch.dtype, *, backward: bool) -> Tiles:
    """Choose for the kernels that hold whole rows of logits; tests compile them for compute capability 8.0 and 9.0.

    K and V stay on chip between blocks of rows where shared memory takes them, else are read PART columns at a time.
    Rows, warps and stages of 16-bit types at a head width of 64 follow measurements on an H200 (docs/log.md).
    """
    padded, columns = padded_to(keys), padded_to(width)
    size = padded * columns * dtype.itemsize
    wide = dtype.itemsize == 4  # no tensor cores: operands lie in registers
    resident = not wide and size <= (1 << 15 if backward else 1 << 16)
    part = columns if resident else max(16, min(columns, (1 << 14 if wide else 1 << 15) // (padded * dtype.itemsize)))
    rows = 8 if wide and padded > 512 else 16
    if not wide and (padded <= 64 or (resident and queries > 64)) and backward:
        rows = 32
    warps, stages = (4 if padded <= 64 else 8), (2 if resident else 1)
    if not wide and padded <= 256 and columns <= 64:  # measured
        warps = 1 if padded <= 64 and not backward else 4
        stages = 1 if warps == 1 else 2
    constants = {"RESIDENT": resident, "ROWS": rows, "KEYS": padded, "WIDTH": columns, "PART": part}
    return Tiles(constants, {"num_warps": warps, "num_stages": stages})


def key_tiles(queries: int, width: int, dtype: torch.dtype) -> Tiles:
    """Choose for the kernel that holds dK and dV of a block of keys.

    64 rows are a tenth faster on an H200, but there Q K^T would be a `wgmma`, whose bits are not those of the forward
    pass.
    """
    columns, wide = padded_to(width), dtype.itemsize == 4
    narrow = wide or columns > 64
    constants = {"ROWS": 16 if narrow or queries <= 64 else 32, "KEYS": 32 if narrow else 64, "WIDTH": columns}
    return Tiles(constants, {"num_warps": 8 if wide else 4, "num_stages": 1 if narrow else 2})


def padded_to(size: int) -> int:
    """Return the power of two, at least 16, that a tile's side takes."""
    return max(16, triton.next_power_of_2(size))


def forward(
    q: Tensor, k: Tensor, v: Tensor, count: int, rows: Tensor, intact: Tensor | None, masked: Tensor | None
) -> None:
    """Write R V to `intact` and R^M V to `masked`, each (B, H, N, d) or None, and to `rows` what backward needs."""
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    output = intact if intact is not None else masked
    if not q.numel() or output is None:  # a grid of nothing is no launch
        return
    tiles = row_tiles(queries, keys, width, q.dtype, backward=False)
    blocks, programs = row_blocks(batch * heads, queries, tiles.constants["ROWS"])
    with torch.cuda.device_of(q):
        kernels.forward_kernel[(batch * heads * programs,)](
            *(TensorView.of(x) for x in (q, k, v)),
            *(TensorView.of(output if x is None else x) for x in (intact, masked)),
            rows,
            heads,
            programs,
            queries,
            keys,
            width,
            count,
            scale(width),
            blocks,
            INTACT=intact is not None,
            MASKED=masked is not None,
            **tiles.constants,
            **tiles.options,
        )


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
    """Write gradients to `dq`, `dk`, `dv`: the row kernel gives dQ and delta, then the key kernel dK and dV.

    `count` is in the thresholds of `rows` already.
    """
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    gradient = d_intact if d_intact is not None else d_masked
    assert gradient is not None
    if not q.numel():
        dk.zero_()
        dv.zero_()
        return
    tiles, key_plan = row_tiles(queries, keys, width, q.dtype, backward=True), key_tiles(queries, width, q.dtype)
    blocks, programs = row_blocks(batch * heads, queries, tiles.constants["ROWS"])
    key_blocks = triton.cdiv(keys, key_plan.constants["KEYS"])
    delta = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    views = [TensorView.of(x) for x in (q, k, v)]
    views += [TensorView.of(gradient if x is None else x) for x in (d_intact, d_masked)]
    sizes = [queries, keys, width, scale(width)]
    flags = {"INTACT": d_intact is not None, "MASKED": d_masked is not None}
    with torch.cuda.device_of(q):
        kernels.query_gradient_kernel[(batch * heads * programs,)](
            *views,
            rows,
            delta,
            TensorView.of(dq),
            heads,
            programs,
            *sizes,
            blocks,
            **flags,
            **tiles.constants,
            **tiles.options,
        )
        kernels.key_gradient_kernel[(batch * heads * key_blocks,)](
            *views,
            rows,
            delta,
            TensorView.of(dk),
            TensorView.of(dv),
            heads,
            key_blocks,
            *sizes,
            **flags,
            **key_plan.constants,
            **key_plan.options,
        )


def row_blocks(heads: int, queries: int, rows: int) -> tuple[int, int]:
    """Return how many blocks of rows a program takes, and how many programs a head; each loads K and V once."""
    total = triton.cdiv(queries, rows)
    blocks = total if heads >= MANY_HEADS else 1
    return blocks, triton.cdiv(total, blocks)


def scale(width: int) -> float:
    """Return 1 / sqrt(d), for powers of two."""
    return math.log2(math.e) / math.sqrt(width)
