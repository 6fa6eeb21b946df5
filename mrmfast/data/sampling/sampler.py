"""The order of samples: a pure function of seed and position, the same for any number of ranks.

The *stream* is the concatenation of the shuffled epochs. A step takes the next samples of the stream, also across the
end of an epoch, and each rank takes its part of the step. The whole state is one integer, the *position*: the number of
entries of the stream that were consumed, skipped samples included. Nothing is padded, dropped or repeated, so every
epoch holds each of its entries exactly once.

:mod:`.epoch` decides the entries of an epoch, :mod:`.order` shuffles them. No list of samples exists: a sample is
computed from its position, with 2 bits per row and about 150 bytes per shard in memory.

Examples
--------
Five samples in two shards: an epoch has five entries. The first step of four takes positions 0 to 3. The second step
takes position 4, the last of epoch 0, and the first three positions of epoch 1.

>>> sampler = Sampler([2, 3], seed=0)
>>> first = sampler.take(0, 4)
>>> second = sampler.take(first.end, 4)
>>> second.epoch.tolist(), second.end
([0, 1, 1, 1], 8)
>>> sorted([*first.sample.tolist(), int(second.sample[0])])
[0, 1, 2, 3, 4]

Two ranks share the step without overlap:

>>> [len(sampler.share(first, rank, 2)) for rank in range(2)]
[2, 2]

If a sample is unreadable, the next entry of the stream replaces it, and the position counts the skipped entry:

>>> unreadable = int(first.sample[0])
>>> step = sampler.take(0, 4, without={unreadable})
>>> len(step), unreadable in step.sample.tolist(), step.end
(4, False, 5)
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mrmfast.arithmetic import ceil_div
from mrmfast.data.sampling.draws import uniform
from mrmfast.data.sampling.epoch import Entries, EveryImage, OnePerParticipant, Rows, Sampling, Weighted
from mrmfast.data.sampling.order import SUBSEQUENCES, ShuffledOrder
from mrmfast.errors import UserError

__all__ = ["Sampler", "Slice", "uniform"]
EPOCHS_KEPT = 3  # the previous epoch, the current epoch, and the epoch whose shards are being fetched


@dataclass(frozen=True)
class Slice:
    """Consecutive samples of the stream, or a rank's part of them.

    Attributes
    ----------
    sample : ndarray of int64, shape (n,)
        Sample numbers (rows of the sample table).
    epoch : ndarray of int64, shape (n,)
    position : ndarray of int64, shape (n,)
        Position of each sample in the stream.
    end : int
        Position after the slice, or after the global batch that the slice is a part of.
    """

    sample: np.ndarray
    epoch: np.ndarray
    position: np.ndarray
    end: int

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, index: slice | np.ndarray) -> Slice:
        return Slice(self.sample[index], self.epoch[index], self.position[index], self.end)

    def __add__(self, after: Slice) -> Slice:
        return Slice(
            np.concatenate([self.sample, after.sample]),
            np.concatenate([self.epoch, after.epoch]),
            np.concatenate([self.position, after.position]),
            after.end,
        )


class Sampler:
    """The order in which all ranks together go through the samples.

    Parameters
    ----------
    per_shard : sequence of int, shape (shards,)
        Samples of each shard; sample numbers run through the shards.
    seed : int
    window : int
        0, local mode: all samples are shuffled together. w > 0, object mode: shards are shuffled, then samples within
        each w consecutive shards of a sub-sequence (:mod:`.order`). Each of N ranks then reads about 1 / N of the
        shards and needs :meth:`open_shards` of them at a time.
    selected : ndarray of bool, shape (samples,), optional
        Which samples to use, all by default.
    weights : ndarray of float, shape (samples,), optional
        Draw samples in proportion: :class:`mrmfast.data.sampling.epoch.Weighted`.
    participant : ndarray of int64, shape (samples,), optional
        Draw one sample of each participant: :class:`mrmfast.data.sampling.epoch.OnePerParticipant`.

    Raises
    ------
    UserError
        No sample is selected.
    """

    def __init__(
        self,
        per_shard: np.ndarray | list[int],
        seed: int,
        window: int = 0,
        *,
        selected: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        participant: np.ndarray | None = None,
    ) -> None:
        assert weights is None or participant is None, "weights and participants exclude each other"
        self.seed, self.window = seed, window
        self.ends = np.cumsum(np.asarray(per_shard, dtype=np.int64))
        total = int(self.ends[-1]) if len(self.ends) else 0
        chosen = np.ones(total, dtype=bool) if selected is None else selected
        assert len(chosen) == total, (len(chosen), total)
        rows = Rows(self.ends, chosen)
        if not rows.length:
            raise UserError("no image is selected; choose another data.split, or data.split=all")
        self._sampling: Sampling
        if weights is not None:
            self._sampling = Weighted(seed, rows, weights[chosen])
        elif participant is not None:
            self._sampling = OnePerParticipant(seed, rows, participant[chosen])
        else:
            self._sampling = EveryImage(rows)
        # At most one sub-sequence per shard, and the same number in every epoch: a rank then stays with its shards. A
        # power of two divides common batch sizes, and then a rank's sub-sequences stay the same: see `share`.
        most = min(SUBSEQUENCES, int((rows.per_shard > 0).sum()), len(self)) if window else 1
        self.subsequences = 1 << most.bit_length() - 1
        self._epochs: dict[int, tuple[Entries, ShuffledOrder]] = {}

    def __len__(self) -> int:
        """Entries of an epoch."""
        return self._sampling.length

    def take(self, position: int, count: int, without: AbstractSet[int] = frozenset()) -> Slice:
        """Return the next samples of the stream.

        Parameters
        ----------
        position : int
            Position of the first sample; the state of a run.
        count : int
            Number of samples.
        without : set of int
            Unreadable samples, which are skipped; the next samples of the stream replace them. All ranks must pass
            the same set.

        Returns
        -------
        Slice
            `count` samples; `end` is `position` plus `count` plus the number of skipped entries.

        Raises
        ------
        UserError
            Every sample is in `without`.
        """
        if len(without) >= self._sampling.distinct and without >= set(self._sampling.drawn().tolist()):
            raise UserError(f"none of the {self._sampling.distinct:,} images can be read; check the dataset's files")
        taken = self._read(position, count)
        while without:
            skipped = np.array([sample in without for sample in taken.sample.tolist()], dtype=bool)
            if not skipped.any():
                break
            taken = taken[~skipped] + self._read(taken.end, int(skipped.sum()))
        return taken

    def share(self, piece: Slice, rank: int, world: int) -> Slice:
        """Return a rank's part of a global batch; the parts of all ranks, in order, make up the batch.

        In object mode the batch is divided by sub-sequences, so that a rank stays with its shards. If the batch size is
        a multiple or a divisor of the 64 sub-sequences, a rank reads its own sub-sequences only: 1 / N of the bytes.
        With other batch sizes a rank also reads sub-sequences of its neighbours (measured: 1.6 to 2.3 times the bytes
        for batches of 100, 1.1 to 1.3 times for 1,000). Parts differ by at most one sample. Some parts are empty if
        there are more ranks than samples.
        """
        first, last = (len(piece) * turn // world for turn in (rank, rank + 1))
        return piece[np.argsort(self._subsequence(piece.position), kind="stable")[first:last]]

    def shards_ahead(self, position: int, count: int, rank: int, world: int, batch: int) -> np.ndarray:
        """Return the shards that a rank needs next.

        Parameters
        ----------
        position : int
        count : int
            Number of stream entries to look ahead. Skipped samples are not taken into account: each of them shifts the
            later positions by one.
        rank, world : int
        batch : int
            Global batch size; the first batch starts at `position`.

        Returns
        -------
        ndarray of int64
            Shards in the order of their first use, each once.
        """
        ahead = np.arange(count)
        number, offset = np.divmod(ahead[np.lexsort((self._subsequence(position + ahead), ahead // batch))], batch)
        within = ahead % batch  # the sort moves samples within their batch only
        size = np.minimum(batch, count - number * batch)
        own = (within >= size * rank // world) & (within < size * (rank + 1) // world)
        shards = self._locate(np.sort(position + number[own] * batch + offset[own]))[2]
        _, first = np.unique(shards, return_index=True)
        return shards[np.sort(first)]

    def shard_of(self, sample: np.ndarray) -> np.ndarray:
        """Return the shards of samples, int64, shape (n,)."""
        return np.searchsorted(self.ends, sample, side="right")

    def open_shards(self, world: int) -> float:
        """Return the maximum number of shards that a rank uses at a time; infinite in local mode.

        The bound holds between steps, for batch sizes that are a multiple or a divisor of the number of sub-sequences.
        """
        if not self.window:
            return float("inf")
        return min(self.subsequences, ceil_div(self.subsequences, world) + 1) * self.window

    def _subsequence(self, position: np.ndarray) -> np.ndarray:
        return position % len(self) % self.subsequences

    def _read(self, start: int, count: int) -> Slice:
        """Return the samples at `count` positions from `start`, unreadable samples included."""
        position = np.arange(start, start + count)
        epoch, entry, _ = self._locate(position)
        sample = np.empty(len(position), dtype=np.int64)
        for number, run in _runs(epoch):
            sample[run] = self._epoch(number)[0].rows(entry[run])
        return Slice(sample, epoch, position, start + count)

    def _locate(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return epochs, entries and shards at positions, ascending; int64, shape (n,) each."""
        epoch, offset = np.divmod(position, len(self))
        entry, shard = np.empty_like(offset), np.empty_like(offset)
        for number, run in _runs(epoch):
            entry[run], shard[run] = self._epoch(number)[1].locate(offset[run])
        return epoch, entry, shard

    def _epoch(self, number: int) -> tuple[Entries, ShuffledOrder]:
        known = self._epochs.get(number)
        if known is None:
            entries = self._sampling.epoch(number)
            known = entries, ShuffledOrder(self.seed, number, entries.per_shard, self.subsequences, self.window)
            # A new dict, so that the prefetch thread needs no lock: at worst both threads compute the same order.
            kept = sorted(self._epochs.items(), key=lambda item: abs(item[0] - number))[: EPOCHS_KEPT - 1]
            self._epochs = dict(kept) | {number: known}
        return known


def _runs(epoch: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Yield each epoch of an ascending array, and its slice of the array."""
    edges = [0, *(np.flatnonzero(np.diff(epoch)) + 1).tolist(), len(epoch)]
    for start, stop in pairwise(edges):
        if start < stop:
            yield int(epoch[start]), slice(start, stop)
