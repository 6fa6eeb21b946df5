"""The shuffle of one epoch: from a place in the epoch to an entry, without listing any.

Two modes, one computation. **Local** (window 0): one lane, one window, so all entries are shuffled together.
**Object** (window w): shards are shuffled and laid end to end; the line is cut into at most 64 lanes of equal length;
within a lane, entries are shuffled among each w consecutive shards. Place p of the epoch is the next of lane p % lanes.
So whoever reads a range of lanes reads a range of the shuffled shards, and needs w of them at a time per lane.
"""

from __future__ import annotations

import numpy as np

from mrmfast.data.sampling.draws import hashed, permute

LANES = 64
# Streams of draws; those below 2^16 belong to augmentation.
SHARDS, ENTRIES = (1 << 16) + 2, (1 << 16) + 3


class EpochOrder:
    """The order of one epoch.

    Parameters
    ----------
    seed, epoch : int
    per_shard : ndarray of int64, shape (shards,)
        Entries of each shard; zeros are fine.
    lanes : int
        At most the number of entries.
    window : int
        0: local mode; w: shards shuffled together.
    """

    def __init__(self, seed: int, epoch: int, per_shard: np.ndarray, lanes: int, window: int) -> None:
        self._lanes, number = lanes, np.array([epoch])
        length = int(per_shard.sum())
        # The line: filled shards, shuffled in object mode, end to end.
        shards = np.flatnonzero(per_shard)
        if window:
            key, count = hashed(seed, SHARDS, number), np.array([len(shards)])
            places = np.arange(len(shards))
            shards = shards[permute(places, count.repeat(len(shards)), key.repeat(len(shards)))]
        self._shards = shards
        self._line = np.cumsum(per_shard[shards]) - per_shard[shards]  # where each begins on the line
        self._entry = (np.cumsum(per_shard) - per_shard)[shards]  # its first entry
        # Place p is number p // lanes of lane p % lanes, so the first lanes may be longer by one.
        self._lane_start = np.arange(lanes) * (length // lanes) + np.minimum(np.arange(lanes), length % lanes)
        starts = self._window_starts(np.append(self._lane_start, length), window) if window else np.zeros(1, np.int64)
        self._windows, self._sizes = starts, np.diff(starts, append=length)
        self._keys = hashed(seed, ENTRIES, number.repeat(len(starts)), np.arange(len(starts)))

    def _window_starts(self, lane_edges: np.ndarray, window: int) -> np.ndarray:
        """Return where windows begin on the line: at each lane's start and after every `window` shards of it."""
        first = np.searchsorted(self._line, lane_edges, side="right") - 1
        starts = []
        for lane, start in enumerate(lane_edges[:-1]):
            inside = self._line[first[lane] + window : first[lane + 1] + 1 : window]
            starts += [lane_edges[lane : lane + 1], inside[(inside > start) & (inside < lane_edges[lane + 1])]]
        return np.concatenate(starts)

    def locate(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which entries are at places of the epoch, and their shards; both int64, shape (n,)."""
        line = self._lane_start[place % self._lanes] + place // self._lanes
        window = np.searchsorted(self._windows, line, side="right") - 1
        start = self._windows[window]
        line = start + permute(line - start, self._sizes[window], self._keys[window])
        nth = np.searchsorted(self._line, line, side="right") - 1
        return self._entry[nth] + line - self._line[nth], self._shards[nth]
