"""Genotypes of two bits each: PLINK 1 codes, store codes, counts and the transpose, on machine words.

A *code* is 0, 1, 2 copies of one allele, or 3 for missing. A byte holds four codes, lowest bits first. Variant-major
rows (four samples per byte, as in a .bed) become sample-major rows (four variants per byte, as in the store) without
unpacking to one byte per genotype. Every function has a simple counterpart in the tests. The slow functions have a
compiled version in :mod:`.twobit_cpu`.
"""

from __future__ import annotations

import numpy as np

from mrmfast.arithmetic import ceil_div

LOW = np.uint8(0x55)  # the lower bit of every code
# Byte -> its four codes, as the bytes of one little-endian word.
SPREAD = (np.arange(256, dtype="<u4")[:, None] >> np.array([0, 2, 4, 6], "<u4") & 3).astype(np.uint8).view("<u4")[:, 0]


def width(count: int) -> int:
    """Return the number of bytes of `count` codes."""
    return ceil_div(count, 4)


def from_plink1(raw: np.ndarray, count_a1: np.ndarray) -> np.ndarray:
    """Convert .bed bytes into codes.

    Parameters
    ----------
    raw : ndarray of uint8, shape (variants, bytes)
        PLINK 1 pairs: 00 is A1 A1, 01 missing, 10 A1 A2, 11 A2 A2
        (https://www.cog-genomics.org/plink/1.9/formats#bed).
    count_a1 : ndarray of bool, shape (variants,)
        Count copies of A1, otherwise of A2.

    Returns
    -------
    ndarray of uint8, shape (variants, bytes)
    """
    low, high = raw & LOW, raw >> 1 & LOW
    # Counting A2: 00 -> 0, 10 -> 1, 11 -> 2, 01 -> 3: the upper bit is `low`, the lower one `low ^ high`.
    # Counting A1 only swaps 0 and 2: the upper bit is inverted if the lower bit is 0.
    either = low ^ high
    inverted = np.where(count_a1, LOW, np.uint8(0))[:, None]
    low ^= ~either & inverted
    low <<= 1
    low |= either
    return low


def pack(copies: np.ndarray) -> np.ndarray:
    """Pack copies, four per byte along the last axis.

    Parameters
    ----------
    copies : ndarray of int8, shape (rows, n)
        0, 1, 2; any negative value is missing (-1, -9, -127).

    Returns
    -------
    ndarray of uint8, shape (rows, width(n))
        Unused codes of the last byte are 0.
    """
    codes = np.zeros((len(copies), 4 * width(copies.shape[1])), dtype=np.uint8)
    np.copyto(codes[:, : copies.shape[1]], copies.view(np.uint8))
    codes[:, : copies.shape[1]][copies < 0] = 3
    return codes[:, 0::4] | codes[:, 1::4] << 2 | codes[:, 2::4] << 4 | codes[:, 3::4] << 6


def unpack(packed: np.ndarray, count: int) -> np.ndarray:
    """Unpack codes to one byte each.

    Returns
    -------
    ndarray of uint8, shape (rows, count)
        0, 1, 2, or 3 for missing.
    """
    return SPREAD[packed].view(np.uint8)[:, :count]


def select(packed: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Return the codes of selected samples, in the order of `samples`.

    Parameters
    ----------
    packed : ndarray of uint8, shape (variants, bytes)
    samples : ndarray of int64, shape (n,)

    Returns
    -------
    ndarray of uint8, shape (variants, width(n))
        A view of `packed` if the samples are whole bytes.
    """
    count = len(samples)
    if count and samples[0] % 4 == 0 and (np.diff(samples) == 1).all():
        first = int(samples[0]) // 4
        chosen = packed[:, first : first + width(count)]
        if count % 4:
            chosen = chosen.copy()
            chosen[:, -1] &= (1 << 2 * (count % 4)) - 1
        return chosen
    padded = np.pad(samples, (0, -count % 4))
    codes = packed[:, padded // 4] >> (padded % 4 * 2).astype(np.uint8) & 3
    codes[:, count:] = 0
    return codes[:, 0::4] | codes[:, 1::4] << 2 | codes[:, 2::4] << 4 | codes[:, 3::4] << 6


def mask(chosen: np.ndarray) -> np.ndarray:
    """Return bytes in which the lower bit of the code of every chosen sample is set, shape (width(n),).

    Parameters
    ----------
    chosen : ndarray of bool, shape (n,)
    """
    return pack(chosen.astype(np.int8)[None])[0]


def count(packed: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Count the codes of chosen samples.

    Parameters
    ----------
    packed : ndarray of uint8, shape (variants, bytes)
    chosen : ndarray of uint8, shape (bytes,)
        From :func:`mask`.

    Returns
    -------
    ndarray of int64, shape (variants, 4)
        Number of samples with code 0, 1, 2, 3.
    """
    low, high = packed & chosen, packed >> 1 & chosen
    return counts_of_bits(np.stack([_bits(x) for x in (low, high, low & high)], axis=1), chosen)


def counts_of_bits(bits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return :func:`count` from the numbers of lower bits, upper bits and codes with both, shape (variants, 3)."""
    low, high, both = bits.T
    total = int(np.bitwise_count(chosen).sum())
    return np.stack([total - low - high + both, low - both, high - both, both], axis=1)


def _bits(rows: np.ndarray) -> np.ndarray:
    """Count the set bits of every row, first in words, then in the remaining bytes."""
    whole = rows.shape[1] // 8 * 8
    words = np.ascontiguousarray(rows[:, :whole]).view(np.uint64)
    rest = np.bitwise_count(rows[:, whole:]).sum(axis=1, dtype=np.int64)
    return np.bitwise_count(words).sum(axis=1, dtype=np.int64) + rest


def transpose(packed: np.ndarray, out: np.ndarray) -> None:
    """Transpose variant-major codes to sample-major codes.

    Parameters
    ----------
    packed : ndarray of uint8, shape (variants, width(samples))
    out : ndarray of uint8, shape (samples, width(variants))
        Written.
    """
    variants, columns = packed.shape
    quads = np.zeros((width(variants), columns, 4), dtype=np.uint8)
    for offset in range(4):
        rows = packed[offset::4]
        quads[: len(rows), :, offset] = rows
    # A word now holds 4 variants x 4 samples. Code (v, s) is at bit 8 v + 2 s and moves to bit 8 s + 2 v by two rounds
    # of swaps (Warren, Hacker's Delight, 7-3): first inside 2 x 2 blocks, then between the blocks.
    words = quads.view("<u4")[..., 0]
    swap = np.empty_like(words)
    for shift, bits in ((6, 0x00CC00CC), (12, 0x0000F0F0)):
        np.right_shift(words, shift, out=swap)
        swap ^= words
        swap &= np.uint32(bits)
        words ^= swap
        swap <<= np.uint32(shift)
        words ^= swap
    out[:] = quads.reshape(len(quads), 4 * columns).T[: len(out)]
