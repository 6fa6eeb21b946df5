"""The shuffle of one epoch: from a position in the epoch to an entry, without a list of entries.

Both modes are one computation. **Local mode** (window 0) shuffles all entries together: one sub-sequence, one window.
**Object mode** (window w) takes four steps:

1. The shards are shuffled and concatenated to one sequence.
2. The sequence is cut into at most 64 sub-sequences of equal length.
3. Within a sub-sequence, the entries of each w consecutive shards (a window) are shuffled.
4. The epoch interleaves the sub-sequences: position p is entry p // S of sub-sequence p % S, for S sub-sequences.

A rank that reads a range of sub-sequences therefore reads a range of the shuffled shards, and needs w of them at a
time for each sub-sequence.

Examples
--------
Four shards A, B, C, D of two entries each, S = 2 sub-sequences and w = 1. The shards are shuffled to C A D B. The
sub-sequences are C C A A and D D B B. Each window is one shard, so its two entries swap or stay. The epoch interleaves
both: C D C D A B A B. A rank that reads the first sub-sequence only reads the shards C and A, one after the other.
"""

from __future__ import annotations

import numpy as np

from mrmfast.data.sampling.draws import hashed, permute

SUBSEQUENCES = 64  # at most
# Streams of draws; those below 2^16 belong to augmentation.
SHARDS, ENTRIES = (1 << 16) + 2, (1 << 16) + 3


class ShuffledOrder:
    """The order of one epoch.

    Parameters
    ----------
    seed, epoch : int
    per_shard : ndarray of int64, shape (shards,)
        Entries of each shard; zeros are allowed.
    subsequences : int
        At most the number of entries.
    window : int
        0: local mode; w: object mode, with w shards shuffled together.

    Examples
    --------
    Three shards of 1, 2 and 2 entries in local mode: each of the entries 0 to 4 appears once.

    >>> order = ShuffledOrder(seed=0, epoch=0, per_shard=np.array([1, 2, 2]), subsequences=1, window=0)
    >>> entry, shard = order.locate(np.arange(5))
    >>> sorted(entry.tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, seed: int, epoch: int, per_shard: np.ndarray, subsequences: int, window: int) -> None:
        self._subsequences, number = subsequences, np.array([epoch])
        length = int(per_shard.sum())
        # The sequence: shards that hold entries, shuffled in object mode, one after the other.
        shards = np.flatnonzero(per_shard)
        if window:
            key, count = hashed(seed, SHARDS, number), np.array([len(shards)])
            shards = shards[permute(np.arange(len(shards)), count.repeat(len(shards)), key.repeat(len(shards)))]
        self._shards = shards
        self._shard_start = np.cumsum(per_shard[shards]) - per_shard[shards]  # in the sequence
        self._first_entry = (np.cumsum(per_shard) - per_shard)[shards]
        # Where the length is no multiple of S, the first sub-sequences are longer by one entry.
        numbers = np.arange(subsequences)
        self._subsequence_start = numbers * (length // subsequences) + np.minimum(numbers, length % subsequences)
        edges = np.append(self._subsequence_start, length)
        starts = self._window_starts(edges, window) if window else np.zeros(1, np.int64)
        self._windows, self._sizes = starts, np.diff(starts, append=length)
        self._keys = hashed(seed, ENTRIES, number.repeat(len(starts)), np.arange(len(starts)))

    def _window_starts(self, edges: np.ndarray, window: int) -> np.ndarray:
        """Return where windows start in the sequence: with each sub-sequence, and after every `window` shards of it."""
        first = np.searchsorted(self._shard_start, edges, side="right") - 1
        starts = []
        for number, start in enumerate(edges[:-1]):
            inside = self._shard_start[first[number] + window : first[number + 1] + 1 : window]
            starts += [edges[number : number + 1], inside[(inside > start) & (inside < edges[number + 1])]]
        return np.concatenate(starts)

    def locate(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the entries at positions of the epoch, and their shards; both int64, shape (n,)."""
        unshuffled = self._subsequence_start[position % self._subsequences] + position // self._subsequences
        window = np.searchsorted(self._windows, unshuffled, side="right") - 1
        start = self._windows[window]
        index = start + permute(unshuffled - start, self._sizes[window], self._keys[window])  # in the sequence
        nth = np.searchsorted(self._shard_start, index, side="right") - 1
        return self._first_entry[nth] + index - self._shard_start[nth], self._shards[nth]
