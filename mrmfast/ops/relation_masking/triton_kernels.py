"""Kernels of the GPU path. A row of logits lies on chip from its first to its last use; nothing N x M is in memory.

All kernels compute a tile of logits alike, rows of Q by keys with the whole head width in one product, so that the
backward pass sees the bits that the forward pass selected on: an element of such a product depends on its row and its
column only, not on the tile around them. Selection is on the unscaled float32 logits Q K^T; the scale is positive, so
the order is the same. `scale` is 1 / sqrt(d) times log2(e), because a GPU has 2^x and no e^x. ``README.md`` has the
maths.

Arguments: q, k, v and the like are :class:`mrmfast.ops.relation_masking.triton_parts.TensorView`. `rows_ptr` is
(B, H, N, 2): log2-sum-exp2 and threshold of each row. `delta_ptr` is (B, H, N).
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads the signatures.

from __future__ import annotations

import triton
import triton.language as tl

from mrmfast.ops.relation_masking.triton_parts import add_products, head_of, load_tile, row_thresholds, store_tile

# Arguments whose values must not make another kernel: their divisibility changes nothing.
SIZES = ["heads", "programs", "queries", "keys", "count", "blocks"]
LN2 = tl.constexpr(0.6931471805599453)  # from powers of two to powers of e


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q,
    k,
    v,
    intact,
    masked,
    rows_ptr,
    heads,
    programs,
    queries,
    keys,
    width,
    count,
    scale,
    blocks,
    INTACT: tl.constexpr,
    MASKED: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
):
    """Both outputs of `blocks` blocks of rows of one sample and head; saves log2-sum-exp2 and threshold per row.

    RESIDENT keeps K and V on chip for all blocks (then PART is WIDTH); else they are read again, PART columns a time.
    """
    key = tl.arange(0, KEYS)
    inside = key < keys
    q_start, k_start, v_start = head_of(q, heads, programs), head_of(k, heads, programs), head_of(v, heads, programs)
    column = tl.arange(0, PART)
    k_tile = load_tile(k, k_start, key, keys, column, width)
    v_tile = load_tile(v, v_start, key, keys, column, width)
    rows_ptr += (tl.program_id(0) // programs).to(tl.int64) * queries * 2
    first = (tl.program_id(0) % programs) * blocks * ROWS
    for start in range(first, min(first + blocks * ROWS, queries), ROWS):
        row = start + tl.arange(0, ROWS)
        valid = row < queries
        s = tl.zeros((ROWS, KEYS), tl.float32)
        s = add_products(s, q, q_start, row, queries, k, k_start, k_tile, key, keys, width, RESIDENT, WIDTH, PART)
        s = tl.where(inside[None, :], s, float("-inf"))
        top = tl.max(s, 1) * scale
        lse = top + tl.log2(tl.sum(tl.exp2(s * scale - top[:, None]), 1))
        tl.store(rows_ptr + 2 * row, lse, mask=valid)
        p = tl.exp2(s * scale - lse[:, None])
        kept = p
        if MASKED:
            threshold = row_thresholds(s, inside, valid, keys, count)
            tl.store(rows_ptr + 2 * row + 1, threshold, mask=valid)
            # A comparison with NaN is False, so nothing of a NaN row is removed and it stays NaN.
            kept = tl.where(s >= threshold[:, None], 0.0, p)
        for part in range(0, WIDTH, PART):
            column = part + tl.arange(0, PART)
            values = v_tile if RESIDENT else load_tile(v, v_start, key, keys, column, width)
            if INTACT:
                out = tl.dot(p.to(values.dtype), values, input_precision="ieee")
                store_tile(intact, head_of(intact, heads, programs), out, row, queries, column, width)
            if MASKED:
                out = tl.dot(kept.to(values.dtype), values, input_precision="ieee")
                store_tile(masked, head_of(masked, heads, programs), out, row, queries, column, width)


@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
    q,
    k,
    v,
    d_intact,
    d_masked,
    rows_ptr,
    delta_ptr,
    dq,
    heads,
    programs,
    queries,
    keys,
    width,
    scale,
    blocks,
    INTACT: tl.constexpr,
    MASKED: tl.constexpr,
    RESIDENT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
):
    """DQ of `blocks` blocks of rows; saves delta, sum of P dP over a row, which is rowsum(dO O) of both outputs.

    d_intact and d_masked are the outputs' gradients; RESIDENT and PART as in the forward kernel.
    """
    key = tl.arange(0, KEYS)
    inside = key < keys
    q_start, k_start, v_start = head_of(q, heads, programs), head_of(k, heads, programs), head_of(v, heads, programs)
    column = tl.arange(0, PART)
    k_tile = load_tile(k, k_start, key, keys, column, width)
    v_tile = load_tile(v, v_start, key, keys, column, width)
    statistics = (tl.program_id(0) // programs).to(tl.int64) * queries
    rows_ptr += statistics * 2
    delta_ptr += statistics
    first = (tl.program_id(0) % programs) * blocks * ROWS
    for start in range(first, min(first + blocks * ROWS, queries), ROWS):
        row = start + tl.arange(0, ROWS)
        valid = row < queries
        s = tl.zeros((ROWS, KEYS), tl.float32)
        s = add_products(s, q, q_start, row, queries, k, k_start, k_tile, key, keys, width, RESIDENT, WIDTH, PART)
        s = tl.where(inside[None, :], s, float("-inf"))
        dp = tl.zeros((ROWS, KEYS), tl.float32)
        if MASKED:
            threshold = tl.load(rows_ptr + 2 * row + 1, mask=valid, other=0.0)
            g_start = head_of(d_masked, heads, programs)
            dp = add_products(
                dp, d_masked, g_start, row, queries, v, v_start, v_tile, key, keys, width, RESIDENT, WIDTH, PART
            )
            dp = tl.where(s >= threshold[:, None], 0.0, dp)
        if INTACT:
            g_start = head_of(d_intact, heads, programs)
            dp = add_products(
                dp, d_intact, g_start, row, queries, v, v_start, v_tile, key, keys, width, RESIDENT, WIDTH, PART
            )
        # Rows that do not exist have P = 2^-inf = 0.
        lse = tl.load(rows_ptr + 2 * row, mask=valid, other=float("inf"))
        p = tl.exp2(s * scale - lse[:, None])
        delta = tl.sum(p * dp, 1)
        tl.store(delta_ptr + row, delta, mask=valid)
        ds = (p * (dp - delta[:, None])).to(k_tile.dtype)
        for part in range(0, WIDTH, PART):
            column = part + tl.arange(0, PART)
            k_part = k_tile if RESIDENT else load_tile(k, k_start, key, keys, column, width)
            out = tl.dot(ds, k_part, input_precision="ieee") * (scale * LN2)
            store_tile(dq, head_of(dq, heads, programs), out, row, queries, column, width)


@triton.jit(do_not_specialize=SIZES)
def key_gradient_kernel(
    q,
    k,
    v,
    d_intact,
    d_masked,
    rows_ptr,
    delta_ptr,
    dk,
    dv,
    heads,
    programs,
    queries,
    keys,
    width,
    scale,
    INTACT: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """DK and dV of one block of keys, over all rows."""
    key = (tl.program_id(0) % programs) * KEYS + tl.arange(0, KEYS)
    column = tl.arange(0, WIDTH)
    inside = key < keys
    q_start = head_of(q, heads, programs)
    k_tile = load_tile(k, head_of(k, heads, programs), key, keys, column, width)
    v_tile = load_tile(v, head_of(v, heads, programs), key, keys, column, width)
    statistics = (tl.program_id(0) // programs).to(tl.int64) * queries
    rows_ptr += statistics * 2
    delta_ptr += statistics
    dk_sum = tl.zeros((KEYS, WIDTH), tl.float32)
    dv_sum = tl.zeros((KEYS, WIDTH), tl.float32)
    for start in range(0, queries, ROWS):
        row = start + tl.arange(0, ROWS)
        valid = row < queries
        q_tile = load_tile(q, q_start, row, queries, column, width)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        s = tl.where(inside[None, :], s, float("-inf"))
        # Rows that do not exist have P = 2^-inf = 0.
        lse = tl.load(rows_ptr + 2 * row, mask=valid, other=float("inf"))
        delta = tl.load(delta_ptr + row, mask=valid, other=0.0)
        p = tl.exp2(s * scale - lse[:, None])
        dp = tl.zeros((ROWS, KEYS), tl.float32)
        if MASKED:
            threshold = tl.load(rows_ptr + 2 * row + 1, mask=valid, other=0.0)
            removed = s >= threshold[:, None]
            g = load_tile(d_masked, head_of(d_masked, heads, programs), row, queries, column, width)
            dv_sum = tl.dot(tl.trans(tl.where(removed, 0.0, p).to(g.dtype)), g, dv_sum, input_precision="ieee")
            dp = tl.where(removed, 0.0, tl.dot(g, tl.trans(v_tile), input_precision="ieee"))
        if INTACT:
            g = load_tile(d_intact, head_of(d_intact, heads, programs), row, queries, column, width)
            dv_sum = tl.dot(tl.trans(p.to(g.dtype)), g, dv_sum, input_precision="ieee")
            dp = tl.dot(g, tl.trans(v_tile), dp, input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dk_sum = tl.dot(tl.trans(ds.to(q_tile.dtype)), q_tile, dk_sum, input_precision="ieee")
    dk_sum *= scale * LN2
    store_tile(dk, head_of(dk, heads, programs), dk_sum, key, keys, column, width)
    store_tile(dv, head_of(dv, heads, programs), dv_sum, key, keys, column, width)
