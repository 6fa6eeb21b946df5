"""What one epoch holds: its entries, numbered in the order of the sample table, before any shuffle.

Three ways to choose them. Each answers for an epoch with the number of entries per shard and, for any entry, the row
of the sample table, so the entries are never listed.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mrmfast.data.sampling.draws import hashed, uniform

# Streams of draws; those below 2^16 belong to augmentation.
RESAMPLING, CHOICE = 1 << 16, (1 << 16) + 1
POINT = 32  # binary places of a weight; the mean weight is 1 << POINT
BLOCK = 1 << 20  # participants at a time


class Entries(Protocol):
    """The entries of one epoch.

    Attributes
    ----------
    per_shard : ndarray of int64, shape (shards,)
    """

    per_shard: np.ndarray

    def rows(self, entry: np.ndarray) -> np.ndarray:
        """Return the rows (samples) of entries, int64, shape (n,)."""


class Sampling(Protocol):
    """How the entries of each epoch are chosen.

    Attributes
    ----------
    length : int
        Entries of an epoch, the same for all.
    distinct : int
        Rows that an epoch may hold.
    """

    length: int
    distinct: int

    def epoch(self, number: int) -> Entries:
        """Return the entries of an epoch."""

    def drawn(self) -> np.ndarray:
        """Return the rows that an epoch may hold, int64, shape (distinct,), ascending."""


class Rows:
    """A set of rows as a bitmap with a running count per 64 rows: two bits a row, any member in one search.

    Parameters
    ----------
    ends : ndarray of int64, shape (shards,)
        Row after each shard's last.
    chosen : ndarray of bool, shape (rows,)
    """

    def __init__(self, ends: np.ndarray, chosen: np.ndarray) -> None:
        self.ends = ends
        packed = np.packbits(chosen, bitorder="little")
        self._words = np.zeros(-(-len(chosen) // 64) + 1, dtype="<u8")
        self._words.view(np.uint8)[: len(packed)] = packed
        self._before = np.concatenate([[0], np.cumsum(np.bitwise_count(self._words), dtype=np.int64)])
        self.length = int(self._before[-1])
        self.per_shard = np.diff(self._rank(ends), prepend=0)

    def _rank(self, row: np.ndarray) -> np.ndarray:
        """Count members below each row."""
        word, bit = np.divmod(row, 64)
        below = (np.uint64(1) << bit.astype(np.uint64)) - np.uint64(1)
        return self._before[word] + np.bitwise_count(self._words[word] & below)

    def rows(self, entry: np.ndarray) -> np.ndarray:
        """Return the `entry`-th members, int64, shape (n,)."""
        word = np.searchsorted(self._before, entry, side="right") - 1
        bits = np.unpackbits(self._words[word].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        nth = (entry - self._before[word] + 1).astype(np.uint8)[:, None]
        return word * 64 + (np.cumsum(bits, axis=1, dtype=np.uint8) == nth).argmax(1)

    def all(self) -> np.ndarray:
        """Return all members, ascending, int64, shape (length,)."""
        return np.flatnonzero(np.unpackbits(self._words.view(np.uint8), bitorder="little"))


class EveryImage:
    """Each selected image once.

    Parameters
    ----------
    selected : Rows
    """

    def __init__(self, selected: Rows) -> None:
        self._selected = selected
        self.length = self.distinct = selected.length

    def epoch(self, number: int) -> Rows:
        """Return the entries of an epoch: the same rows in each."""
        return self._selected

    def drawn(self) -> np.ndarray:
        """Return the rows that an epoch may hold, int64, shape (distinct,), ascending."""
        return self._selected.all()


class Weighted:
    """As many entries as selected images, each image in proportion to its weight: systematic resampling.

    With C the running sum of weights scaled to a mean of one and u in [0, 1) drawn per epoch, image i has
    floor(C_i + u) - floor(C_(i-1) + u) copies: its weight rounded up or down, and its weight on average. Sums are
    integers, so equal weights give exactly one copy each.

    Parameters
    ----------
    seed : int
    selected : Rows
    weights : ndarray of float, shape (selected.length,)
        Of the selected rows: finite, none negative, one positive; the scale does not matter, and what is below 2^-33
        of the mean counts as zero. Held as 8 bytes a selected row.
    """

    def __init__(self, seed: int, selected: Rows, weights: np.ndarray) -> None:
        self._seed, self._rows = seed, selected
        self.length = selected.length
        scaled = weights.astype(np.float64)
        assert np.isfinite(scaled).all() and (scaled >= 0).all() and scaled.any(), "weights are checked where read"
        scaled /= scaled.max()  # the sum of the largest doubles would be infinite
        parts = np.rint(scaled * (2.0**POINT / scaled.mean())).astype(np.int64)
        # The sum must be exact; the largest weight, 1 at least, bears what rounding leaves: n / 2^33 copies at most.
        parts[parts.argmax()] += (self.length << POINT) - int(parts.sum())
        self.distinct = int((parts > 0).sum())
        self._sums = np.cumsum(parts)
        self._shard_ends = np.cumsum(self._rows.per_shard)

    def epoch(self, number: int) -> _Copies:
        """Return the entries of an epoch."""
        drawn = hashed(self._seed, RESAMPLING, np.array([number]))
        return _Copies(self._rows, self._sums, self._shard_ends, int(drawn[0]) >> (64 - POINT))

    def drawn(self) -> np.ndarray:
        """Return the rows that an epoch may hold, int64, shape (distinct,), ascending."""
        return self._rows.rows(np.flatnonzero(np.diff(self._sums, prepend=0)))


class _Copies:
    """One epoch of :class:`Weighted`; `offset` is its u."""

    def __init__(self, rows: Rows, sums: np.ndarray, shard_ends: np.ndarray, offset: int) -> None:
        self._rows, self._sums, self._offset = rows, sums, offset
        upto = np.concatenate([[0], sums])[shard_ends]
        self.per_shard = np.diff((upto + offset) >> POINT, prepend=0)

    def rows(self, entry: np.ndarray) -> np.ndarray:
        """Return the rows (samples) of entries, int64, shape (n,)."""
        # Entry j is a copy of the first image i with floor(C_i + u) > j.
        return self._rows.rows(np.searchsorted(self._sums, ((entry + 1) << POINT) - self._offset, side="left"))


class OnePerParticipant:
    """Each participant once, by one of their selected images, which changes from epoch to epoch.

    Parameters
    ----------
    seed : int
    selected : Rows
    participant : ndarray of int64, shape (selected.length,)
        Number of each selected row's participant. 8 bytes a selected row and 8 a participant are kept.
    """

    def __init__(self, seed: int, selected: Rows, participant: np.ndarray) -> None:
        self._seed, self._ends = seed, selected.ends
        by_owner = np.argsort(participant, kind="stable")
        self._images, owner = selected.all()[by_owner], participant[by_owner]
        first = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
        self._bounds = np.append(first, len(owner))
        self.length, self.distinct = len(first), len(owner)

    def epoch(self, number: int) -> Rows:
        """Return the entries of an epoch; takes time in proportion to the participants."""
        chosen = np.zeros(self._ends[-1], dtype=bool)
        for start in range(0, self.length, BLOCK):
            bounds = self._bounds[start : start + BLOCK + 1]
            first, count = bounds[:-1], np.diff(bounds)
            # A participant is known by their first selected image, whoever else is in the dataset.
            draw = uniform(self._seed, np.full(len(first), number), self._images[first], CHOICE)
            chosen[self._images[first + (draw * count).astype(np.int64)]] = True
        return Rows(self._ends, chosen)

    def drawn(self) -> np.ndarray:
        """Return the rows that an epoch may hold, int64, shape (distinct,), ascending."""
        return np.sort(self._images)
