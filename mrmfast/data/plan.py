"""Which sample when: a pure function of seed and position, the same for any number of ranks.

The stream is the concatenation of epoch orders; step t takes the next global batch of it, across epoch ends, and a
rank takes its share. The whole state is one integer, the number of samples consumed. Nothing is padded, dropped or
repeated, so every full epoch holds every sample exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_MASK = (1 << 64) - 1


def _mix(value: np.ndarray) -> np.ndarray:
    """Scramble uint64 values (SplitMix64 finaliser, Steele, Lea and Flood 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def uniform(seed: int, epoch: np.ndarray, sample: np.ndarray, stream: int) -> np.ndarray:
    """Draw one number in [0, 1) per sample as a pure function of its arguments.

    Parameters
    ----------
    seed : int
    epoch, sample : ndarray of int, shape (n,)
    stream : int
        Distinguishes independent draws (angle, flip, ...) of the same sample.

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    state = np.full(len(sample), (seed * 0x9E3779B97F4A7C15 + stream) & _MASK, dtype=np.uint64)
    for part in (epoch, sample):
        state = _mix(state + np.asarray(part).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1))
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53


@dataclass(frozen=True)
class Slice:
    """A run of consecutive samples of the stream.

    Attributes
    ----------
    sample : ndarray of int64, shape (n,)
        Sample numbers (rows of the sample table).
    epoch : ndarray of int64, shape (n,)
    """

    sample: np.ndarray
    epoch: np.ndarray


@dataclass
class Plan:
    """The global order.

    Parameters
    ----------
    samples : ndarray of int64, shape (n,)
        Rows of the sample table to train on, ascending.
    shard : ndarray of int64, shape (n,)
        The shard of each of them.
    seed : int
    window : int
        0 shuffles all samples; w > 0 shuffles the shards, then the samples within each w consecutive shards, so that
        a reader of an object store needs only w shards at a time.
    """

    samples: np.ndarray
    shard: np.ndarray
    seed: int
    window: int = 0
    _cache: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Return the sample numbers of one epoch in order, shape (n,)."""
        if epoch not in self._cache:
            generator = np.random.Generator(np.random.Philox(key=[self.seed & _MASK, epoch]))
            if self.window:
                shards = generator.permutation(np.unique(self.shard))
                place = np.empty(self.shard.max() + 1, dtype=np.int64)
                place[shards] = np.arange(len(shards)) // self.window
                order = np.lexsort((generator.random(len(self.samples)), place[self.shard]))
            else:
                order = generator.permutation(len(self.samples))
            # Two epochs are alive while a batch crosses an epoch's end.
            self._cache = {kept: self._cache[kept] for kept in (epoch - 1,) if kept in self._cache}
            self._cache[epoch] = self.samples[order]
        return self._cache[epoch]

    def take(self, start: int, count: int) -> Slice:
        """Return samples `start` .. `start + count` of the stream."""
        pieces, epochs = [], []
        while count:
            epoch, inside = divmod(start, len(self))
            piece = self.epoch_order(epoch)[inside : inside + count]
            pieces.append(piece)
            epochs.append(np.full(len(piece), epoch, dtype=np.int64))
            start += len(piece)
            count -= len(piece)
        return Slice(np.concatenate(pieces), np.concatenate(epochs))


def rank_share(batch: int, world: int, rank: int) -> tuple[int, int]:
    """Return (offset, count) of a rank's part of a global batch; `batch` is a multiple of `world`."""
    assert batch % world == 0, (batch, world)
    return rank * (batch // world), batch // world
