"""Parts shared by the kernels of the GPU path: thresholds of rows, loads and stores of tiles, products of tiles."""

# mypy: disable-error-code="no-untyped-def"
# Triton reads the signatures.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

# Bisections of the value before the search bisects bits; random logits of 197 keys take 13.
HALVINGS = tl.constexpr(24)


class TensorView(NamedTuple):
    """A tensor (B, H, N, d) as a kernel's argument: its start and its four strides, in elements."""

    data: Tensor
    batch: Any
    head: Any
    token: Any
    column: Any

    @classmethod
    def of(cls, tensor: Tensor) -> TensorView:
        """Describe a tensor."""
        return cls(tensor, *tensor.stride())


@triton.jit
def ordered(x):
    """Map float32 to int32 in the same order: the lower 31 bits of negative numbers are inverted."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_ordered(image):
    """Undo :func:`ordered`."""
    return (image ^ ((image >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def row_thresholds(s, inside, valid, keys, count):
    """Return a number r per row such that s >= r holds for its `count` largest entries, and for ties with the last.

    s is (ROWS, KEYS), -inf outside; inside (KEYS,); valid (ROWS,): rows that exist. Invariant: at least `count` entries
    are >= low, fewer are >= high. The search ends as soon as exactly `count` entries are >= low: low then lies between
    the `count`-th largest entry and the next. With ties the search ends when low and high are neighbours: low then is
    the `count`-th largest entry.
    """
    low = tl.min(tl.where(inside[None, :], s, float("inf")), 1)
    high = from_ordered(ordered(tl.max(s, 1)) + 1)
    # Number of entries >= low; for rows that do not exist the search is complete.
    at_least_low = tl.where(valid & (count > 0), keys, count)
    step = 0
    # Halving the value isolates an entry in about log2(range / gap) steps, halving the image in up to 32.
    while (step < HALVINGS) & (tl.max(((at_least_low > count) & (low < high)).to(tl.int32), 0) > 0):
        middle = 0.5 * low + 0.5 * high
        above = tl.sum((s >= middle[:, None]).to(tl.int32), 1)
        seeking = at_least_low > count
        enough = above >= count
        low = tl.where(seeking & enough, middle, low)
        at_least_low = tl.where(seeking & enough, above, at_least_low)
        high = tl.where(seeking & (above < count), middle, high)
        step += 1
    # Ties, infinities and tiny gaps: at most 32 steps on the image, where neighbours are neighbours.
    left = ordered(low)
    right = ordered(high)
    while tl.max(((at_least_low > count) & (left + 1 < right)).to(tl.int32), 0) > 0:
        middle = (left & right) + ((left ^ right) >> 1)
        above = tl.sum((s >= from_ordered(middle)[:, None]).to(tl.int32), 1)
        seeking = (at_least_low > count) & (left + 1 < right)
        enough = above >= count
        left = tl.where(seeking & enough, middle, left)
        at_least_low = tl.where(seeking & enough, above, at_least_low)
        right = tl.where(seeking & (above < count), middle, right)
    # No entry is >= NaN and every number is >= -inf: the cases of none and all need no entry.
    row = tl.where(count < keys, from_ordered(left), float("-inf"))
    return tl.where(count > 0, row, float("nan"))


@triton.jit
def head_of(tensor, heads, programs):
    """Return the start of this program's head; `programs` consecutive programs share a head, so the L2 cache has it."""
    head = tl.program_id(0) // programs
    return tensor.data + (head // heads).to(tl.int64) * tensor.batch + (head % heads).to(tl.int64) * tensor.head


@triton.jit
def load_tile(tensor, start, token, tokens, column, columns):
    """Load tokens by columns of one head that starts at `start`, 0 outside (tokens, columns)."""
    offset = token[:, None] * tensor.token + column[None, :] * tensor.column
    return tl.load(start + offset, mask=(token < tokens)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit
def store_tile(tensor, start, value, token, tokens, column, columns):
    """Store tokens by columns of one head that starts at `start`, nothing outside (tokens, columns)."""
    offset = token[:, None] * tensor.token + column[None, :] * tensor.column
    mask = (token < tokens)[:, None] & (column < columns)[None, :]
    tl.store(start + offset, value.to(tensor.data.dtype.element_ty), mask=mask)


@triton.jit
def add_products(
    out,
    a,
    a_start,
    row,
    rows,
    b,
    b_start,
    b_tile,
    key,
    keys,
    width,
    RESIDENT: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
):
    """Add A B^T to `out`, (ROWS, KEYS): A from memory, B resident or read PART columns at a time, in the same order."""
    # No static_range: unrolled, all parts are loaded first and spill.
    for first in range(0, WIDTH, PART):
        column = first + tl.arange(0, PART)
        a_tile = load_tile(a, a_start, row, rows, column, width)
        part = b_tile if RESIDENT else load_tile(b, b_start, key, keys, column, width)
        out = tl.dot(a_tile, tl.trans(part), out, input_precision="ieee")
    return out
