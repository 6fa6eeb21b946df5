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

# Arguments whose values must not make another kernel: their divisibility changes nothing.
SIZES = ["heads", "programs", "queries", "keys", "count", "blocks"]
# Halvings of the value before the search goes on by bits; random logits of 197 keys take 13.
HALVINGS = tl.constexpr(24)
LN2 = tl.constexpr(0.6931471805599453)  # from powers of two to powers of e


@triton.jit
def ordered(x):
    """float32 to an int32 that sorts alike, and back: negative numbers have their lower 31 bits turned."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_ordered(image):
    """Undo :func:`ordered`."""
    return (image ^ ((image >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def row_thresholds(s, inside, valid, keys, count):
    """Find a number r per row such that s >= r holds for its `count` largest entries, and for ties with the last.

    s is (ROWS, KEYS), -inf outside; inside (KEYS,); valid (ROWS,): rows that exist. Invariant: at least `count` entries
    are >= low, fewer are >= high. The search ends where exactly `count` are >= low, which is any number between the
    entry wanted and the next, or else, with ties, where low and high are neighbours: low then is the entry itself.
    """
    low = tl.min(tl.where(inside[None, :], s, float("inf")), 1)
    high = from_ordered(ordered(tl.max(s, 1)) + 1)
    # How many entries are >= low; rows that do not exist are found already.
    found = tl.where(valid & (count > 0), keys, count)
    step = 0
    # Halving the value isolates an entry in about log2(range / gap) steps, halving the image in up to 32.
    while (step < HALVINGS) & (tl.max(((found > count) & (low < high)).to(tl.int32), 0) > 0):
        middle = 0.5 * low + 0.5 * high
        above = tl.sum((s >= middle[:, None]).to(tl.int32), 1)
        seeking = found > count
        enough = above >= count
        low = tl.where(seeking & enough, middle, low)
        found = tl.where(seeking & enough, above, found)
        high = tl.where(seeking & (above < count), middle, high)
        step += 1
    # Ties, infinities and tiny gaps: at most 32 steps on the image, where neighbours are neighbours.
    left = ordered(low)
    right = ordered(high)
    while tl.max(((found > count) & (left + 1 < right)).to(tl.int32), 0) > 0:
        middle = (left & right) + ((left ^ right) >> 1)
        above = tl.sum((s >= from_ordered(middle)[:, None]).to(tl.int32), 1)
        seeking = (found > count) & (left + 1 < right)
        enough = above >= count
        left = tl.where(seeking & enough, middle, left)
        found = tl.where(seeking & enough, above, found)
        right = tl.where(seeking & (above < count), middle, right)
    # Nothing is >= NaN and every number is >= -inf: the ends need no entry's own bits.
    row = tl.where(count < keys, from_ordered(left), float("-inf"))
    return tl.where(count > 0, row, float("nan"))


@triton.jit
def load_tile(base, row, rows, row_stride, column, columns, column_stride):
    """Load base[row, column], 0 outside (rows, columns)."""
    place = row[:, None] * row_stride + column[None, :] * column_stride
    return tl.load(base + place, mask=(row < rows)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit
def store_tile(base, value, row, rows, row_stride, column, columns, column_stride):
    """Store to base[row, column], nothing outside (rows, columns)."""
    place = row[:, None] * row_stride + column[None, :] * column_stride
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(base + place, value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def head_of(base, batch_stride, head_stride, heads, programs):
    """Return the start of this program's sample and head; `programs` in a row share one, so the L2 cache has it."""
    head = tl.program_id(0) // programs
    return base + (head // heads).to(tl.int64) * batch_stride + (head % heads).to(tl.int64) * head_stride


@triton.jit
def products(
    out,
    a_base,
    row,
    rows,
    a_n,
    a_d,
    b,
    b_base,
    key,
    keys,
    b_n,
    b_d,
    width,
    RESIDENT: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
):
    """Add A B^T to `out`, (ROWS, KEYS): A from memory, B resident or read PART columns at a time, in the same order."""
    # No static_range: unrolled, all parts are loaded first and spill.
    for start in range(0, WIDTH, PART):
        column = start + tl.arange(0, PART)
        a = load_tile(a_base, row, rows, a_n, column, width, a_d)
        part = b if RESIDENT else load_tile(b_base, key, keys, b_n, column, width, b_d)
        out = tl.dot(a, tl.trans(part), out, input_precision="ieee")
    return out


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
