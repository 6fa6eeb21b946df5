"""Kernels of the GPU path. A row of logits lies on chip from its first to its last use; nothing N x M is in memory.

All kernels compute a tile of logits alike, rows of Q by keys with the whole head width in one product, so that the
backward pass sees the bits that the forward pass selected on: an element of such a product depends on its row and its
column only, not on the tile around them. Selection is on the unscaled float32 logits Q K^T; the scale is positive, so
the order is the same. `scale` is 1 / sqrt(d) times log2(e), because a GPU has 2^x and no e^x.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads the signatures.

from __future__ import annotations

import triton
import triton.language as tl

from mrmfast.ops.relation_masking.triton_parts import head_of, load_tile, products, row_thresholds, store_tile

# Arguments whose values must not make another kernel: their divisibility changes nothing.
SIZES = ["heads", "programs", "queries", "keys", "count", "blocks"]
LN2 = tl.constexpr(0.6931471805599453)  # from powers of two to powers of e


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    intact_ptr,
    masked_ptr,
    lse_ptr,
    threshold_ptr,
    q_b,
    q_h,
    q_n,
    q_d,
    k_b,
    k_h,
    k_n,
    k_d,
    v_b,
    v_h,
    v_n,
    v_d,
    o_b,
    o_h,
    o_n,
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
    q = head_of(q_ptr, q_b, q_h, heads, programs)
    k_base = head_of(k_ptr, k_b, k_h, heads, programs)
    v_base = head_of(v_ptr, v_b, v_h, heads, programs)
    column = tl.arange(0, PART)
    k = load_tile(k_base, key, keys, k_n, column, width, k_d)
    v = load_tile(v_base, key, keys, v_n, column, width, v_d)
    statistics = (tl.program_id(0) // programs).to(tl.int64) * queries
    first = (tl.program_id(0) % programs) * blocks * ROWS
    for start in range(first, min(first + blocks * ROWS, queries), ROWS):
        row = start + tl.arange(0, ROWS)
        valid = row < queries
        s = tl.zeros((ROWS, KEYS), tl.float32)
        s = products(s, q, row, queries, q_n, q_d, k, k_base, key, keys, k_n, k_d, width, RESIDENT, WIDTH, PART)
        s = tl.where(inside[None, :], s, float("-inf"))
        top = tl.max(s, 1) * scale
        lse = top + tl.log2(tl.sum(tl.exp2(s * scale - top[:, None]), 1))
        tl.store(lse_ptr + statistics + row, lse, mask=valid)
        p = tl.exp2(s * scale - lse[:, None])
        kept = p
        if MASKED:
            threshold = row_thresholds(s, inside, valid, keys, count)
            tl.store(threshold_ptr + statistics + row, threshold, mask=valid)
            # A comparison with NaN is False, so nothing of a NaN row is removed and it stays NaN.
            kept = tl.where(s >= threshold[:, None], 0.0, p)
        for part in range(0, WIDTH, PART):
            column = part + tl.arange(0, PART)
            values = v if RESIDENT else load_tile(v_base, key, keys, v_n, column, width, v_d)
            if INTACT:
                out = tl.dot(p.to(v.dtype), values, input_precision="ieee")
                store_tile(head_of(intact_ptr, o_b, o_h, heads, programs), out, row, queries, o_n, column, width, 1)
            if MASKED:
                out = tl.dot(kept.to(v.dtype), values, input_precision="ieee")
                store_tile(head_of(masked_ptr, o_b, o_h, heads, programs), out, row, queries, o_n, column, width, 1)


@triton.jit(do_not_specialize=SIZES)
def query_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    intact_ptr,
    masked_ptr,
    lse_ptr,
    threshold_ptr,
    delta_ptr,
    dq_ptr,
    q_b,
    q_h,
    q_n,
    q_d,
    k_b,
    k_h,
    k_n,
    k_d,
    v_b,
    v_h,
    v_n,
    v_d,
    i_b,
    i_h,
    i_n,
    i_d,
    m_b,
    m_h,
    m_n,
    m_d,
    o_b,
    o_h,
    o_n,
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

    intact and masked are the outputs' gradients; RESIDENT and PART as in the forward kernel.
    """
    key = tl.arange(0, KEYS)
    inside = key < keys
    q = head_of(q_ptr, q_b, q_h, heads, programs)
    k_base = head_of(k_ptr, k_b, k_h, heads, programs)
    v_base = head_of(v_ptr, v_b, v_h, heads, programs)
    column = tl.arange(0, PART)
    k = load_tile(k_base, key, keys, k_n, column, width, k_d)
    v = load_tile(v_base, key, keys, v_n, column, width, v_d)
    statistics = (tl.program_id(0) // programs).to(tl.int64) * queries
    first = (tl.program_id(0) % programs) * blocks * ROWS
    for start in range(first, min(first + blocks * ROWS, queries), ROWS):
        row = start + tl.arange(0, ROWS)
        valid = row < queries
        s = tl.zeros((ROWS, KEYS), tl.float32)
        s = products(s, q, row, queries, q_n, q_d, k, k_base, key, keys, k_n, k_d, width, RESIDENT, WIDTH, PART)
        s = tl.where(inside[None, :], s, float("-inf"))
        dp = tl.zeros((ROWS, KEYS), tl.float32)
        if MASKED:
            threshold = tl.load(threshold_ptr + statistics + row, mask=valid, other=0.0)
            do = head_of(masked_ptr, m_b, m_h, heads, programs)
            dp = products(dp, do, row, queries, m_n, m_d, v, v_base, key, keys, v_n, v_d, width, RESIDENT, WIDTH, PART)
            dp = tl.where(s >= threshold[:, None], 0.0, dp)
        if INTACT:
            do = head_of(intact_ptr, i_b, i_h, heads, programs)
            dp = products(dp, do, row, queries, i_n, i_d, v, v_base, key, keys, v_n, v_d, width, RESIDENT, WIDTH, PART)
        # Rows that do not exist have P = 2^-inf = 0.
        lse = tl.load(lse_ptr + statistics + row, mask=valid, other=float("inf"))
        p = tl.exp2(s * scale - lse[:, None])
        delta = tl.sum(p * dp, 1)
        tl.store(delta_ptr + statistics + row, delta, mask=valid)
        ds = (p * (dp - delta[:, None])).to(k.dtype)
        for part in range(0, WIDTH, PART):
            column = part + tl.arange(0, PART)
            there = k if RESIDENT else load_tile(k_base, key, keys, k_n, column, width, k_d)
            dq = tl.dot(ds, there, input_precision="ieee") * (scale * LN2)
            store_tile(head_of(dq_ptr, o_b, o_h, heads, programs), dq, row, queries, o_n, column, width, 1)


@triton.jit(do_not_specialize=SIZES)
def key_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    intact_ptr,
    masked_ptr,
    lse_ptr,
    threshold_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    q_b,
    q_h,
    q_n,
    q_d,
    k_b,
    k_h,
    k_n,
    k_d,
    v_b,
    v_h,
    v_n,
    v_d,
    i_b,
    i_h,
    i_n,
    i_d,
    m_b,
    m_h,
    m_n,
    m_d,
    o_b,
    o_h,
    o_n,
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
    q_head = head_of(q_ptr, q_b, q_h, heads, programs)
    k = load_tile(head_of(k_ptr, k_b, k_h, heads, programs), key, keys, k_n, column, width, k_d)
    v = load_tile(head_of(v_ptr, v_b, v_h, heads, programs), key, keys, v_n, column, width, v_d)
    statistics = (tl.program_id(0) // programs).to(tl.int64) * queries
    dk = tl.zeros((KEYS, WIDTH), tl.float32)
    dv = tl.zeros((KEYS, WIDTH), tl.float32)
    for start in range(0, queries, ROWS):
        row = start + tl.arange(0, ROWS)
        valid = row < queries
        q = load_tile(q_head, row, queries, q_n, column, width, q_d)
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        s = tl.where(inside[None, :], s, float("-inf"))
        # Rows that do not exist have P = 2^-inf = 0.
        lse = tl.load(lse_ptr + statistics + row, mask=valid, other=float("inf"))
        delta = tl.load(delta_ptr + statistics + row, mask=valid, other=0.0)
        p = tl.exp2(s * scale - lse[:, None])
        dp = tl.zeros((ROWS, KEYS), tl.float32)
        if MASKED:
            threshold = tl.load(threshold_ptr + statistics + row, mask=valid, other=0.0)
            removed = s >= threshold[:, None]
            do = load_tile(head_of(masked_ptr, m_b, m_h, heads, programs), row, queries, m_n, column, width, m_d)
            dv = tl.dot(tl.trans(tl.where(removed, 0.0, p).to(do.dtype)), do, dv, input_precision="ieee")
            dp = tl.where(removed, 0.0, tl.dot(do, tl.trans(v), input_precision="ieee"))
        if INTACT:
            do = load_tile(head_of(intact_ptr, i_b, i_h, heads, programs), row, queries, i_n, column, width, i_d)
            dv = tl.dot(tl.trans(p.to(do.dtype)), do, dv, input_precision="ieee")
            dp = tl.dot(do, tl.trans(v), dp, input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dk = tl.dot(tl.trans(ds.to(q.dtype)), q, dk, input_precision="ieee")
    dk *= scale * LN2
    store_tile(head_of(dk_ptr, o_b, o_h, heads, programs), dk, key, keys, o_n, column, width, 1)
    store_tile(head_of(dv_ptr, o_b, o_h, heads, programs), dv, key, keys, o_n, column, width, 1)
