"""The entries of one epoch, numbered in the order of the sample table, before the shuffle.

Three classes choose the entries: :class:`EveryImage`, :class:`Weighted` and :class:`OnePerParticipant`. Each gives, for
an epoch, the number of entries per shard, and for any entry the row of the sample table. No list of entries exists.

Examples
--------
Two shards of three images each; images 1 and 5 are not selected. An epoch has the entries 0 to 3:

>>> selected = Rows(np.array([3, 6]), np.array([True, False, True, True, True, False]))
>>> selected.per_shard.tolist(), selected.rows(np.arange(4)).tolist()
([2, 2], [0, 2, 3, 4])

With weights 1, 0, 2, 1 an epoch still has four entries, and row 3 appears twice:

>>> weighted = Weighted(seed=0, selected=selected, weights=np.array([1.0, 0.0, 2.0, 1.0]))
>>> weighted.epoch(0).rows(np.arange(4)).tolist()
[0, 3, 3, 4]

With one entry per participant (0, 0, 1, 1), an epoch has one row of each:

>>> per_participant = OnePerParticipant(seed=0, selected=selected, participant=np.array([0, 0, 1, 1]))
>>> rows = per_participant.epoch(0).rows(np.arange(2)).tolist()
>>> rows[0] in (0, 2) and rows[1] in (3, 4)
True
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mrmfast.arithmetic import ceil_div
from mrmfast.data.sampling.draws import hashed, uniform

# Streams of draws; those below 2^16 belong to augmentation.
RESAMPLING, CHOICE = 1 << 16, (1 << 16) + 1
POINT = 32  # fractional bits of a weight; the mean weight is 1 << POINT
BLOCK = 1 << 20  # participants per vectorised draw


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
    """The choice of the entries of each epoch.

    Attributes
    ----------
    length : int
        Entries of an epoch, the same for all epochs.
    distinct : int
        Number of rows that an epoch may hold.
    """

    length: int
    distinct: int

    def epoch(self, number: int) -> Entries:
        """Return the entries of an epoch."""

    def drawn(self) -> np.ndarray:
        """Return the rows that an epoch may hold, int64, shape (distinct,), ascending."""


class Rows:
    """A set of rows as a bitmap with a running count per 64 rows: two bits per row, one binary search per member.

    Parameters
    ----------
    ends : ndarray of int64, shape (shards,)
        Row after each shard's last.
    chosen : ndarray of bool, shape (rows,)
    """

    def __init__(self, ends: np.ndarray, chosen: np.ndarray) -> None:
        self.ends = ends
        packed = np.packbits(chosen, bitorder="little")
        self._words = np.zeros(ceil_div(len(chosen), 64) + 1, dtype="<u8")
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
    """Systematic resampling: as many entries as selected images, each image in proportion to its weight.

    Let C_i be the cumulative sum of the weights, scaled to a mean of 1, and let u in [0, 1) be drawn per epoch. Image i
    has floor(C_i + u) - floor(C_(i-1) + u) copies: its scaled weight rounded up or down, and on average the scaled
    weight itself. Sums are integers, so equal weights give exactly one copy of each image.

    Parameters
    ----------
    seed : int
    selected : Rows
    weights : ndarray of float, shape (selected.length,)
        Weights of the selected rows: finite, not negative, at least one positive. The scale does not matter. Weights
        below 2^-33 of the mean count as zero. Memory: 8 bytes per selected row.
    """

    def __init__(self, seed: int, selected: Rows, weights: np.ndarray) -> None:
        self._seed, self._rows = seed, selected
        self.length = selected.length
        scaled = weights.astype(np.float64)
        assert np.isfinite(scaled).all() and (scaled >= 0).all() and scaled.any(), "read_weights checks the weights"
        scaled /= scaled.max()  # avoids an infinite sum of the largest doubles
        parts = np.rint(scaled * (2.0**POINT / scaled.mean())).astype(np.int64)
        # The sum must be exact. The rounding error, at most n / 2^33 copies, goes to the largest weight.
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
    """One entry per participant: one of the participant's selected images, drawn anew in each epoch.

    Parameters
    ----------
    seed : int
    selected : Rows
    participant : ndarray of int64, shape (selected.length,)
        Participant number of each selected row. Memory: 8 bytes per selected row and 8 per participant.
    """

    def __init__(self, seed: int, selected: Rows, participant: np.ndarray) -> None:
        self._seed, self._ends = seed, selected.ends
        by_owner = np.argsort(participant, kind="stable")
        self._images, owner = selected.all()[by_owner], participant[by_owner]
        first = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
        self._bounds = np.append(first, len(owner))
        self.length, self.distinct = len(first), len(owner)

    def epoch(self, number: int) -> Rows:
        """Return the entries of an epoch; the time is proportional to the number of participants."""
        chosen = np.zeros(self._ends[-1], dtype=bool)
        for start in range(0, self.length, BLOCK):
            bounds = self._bounds[start : start + BLOCK + 1]
            first, count = bounds[:-1], np.diff(bounds)
            # The hash takes the participant's first selected image, which does not depend on other participants.
            draw = uniform(self._seed, np.full(len(first), number), self._images[first], CHOICE)
            chosen[self._images[first + (draw * count).astype(np.int64)]] = True
        return Rows(self._ends, chosen)

    def drawn(self) -> np.ndarray:
        """Return the rows that an epoch may hold, int64, shape (distinct,), ascending."""
        return np.sort(self._images)
