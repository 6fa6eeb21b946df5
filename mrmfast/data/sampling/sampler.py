"""Which sample when: a pure function of seed and position, the same for any number of ranks.

The stream is the concatenation of epoch orders. A step takes the next samples of it, across epoch ends, and a rank
takes its share. The whole state is one integer, the position: entries of the stream consumed, with those skipped.
Nothing is padded, dropped or repeated, so every epoch holds each of its entries exactly once.

What an epoch holds is :mod:`.epoch`'s, its shuffle :mod:`.order`'s. Nothing is listed: a
sample is computed from its position, with 2 bits a row and some 150 bytes a shard in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mrmfast.data.sampling.draws import uniform
from mrmfast.data.sampling.epoch import Entries, EveryImage, OnePerParticipant, Rows, Sampling, Weighted
from mrmfast.data.sampling.order import LANES, EpochOrder
from mrmfast.errors import UserError

__all__ = ["Plan", "Slice", "uniform"]
EPOCHS_KEPT = 3  # the one before, the one under way, and the one whose shards are being fetched


@dataclass(frozen=True)
class Slice:
    """Some samples of the stream.

    Attributes
    ----------
    sample : ndarray of int64, shape (n,)
        Sample numbers (rows of the sample table).
    epoch : ndarray of int64, shape (n,)
    position : ndarray of int64, shape (n,)
        Where in the stream each is.
    end : int
        Position after the slice, or after the global batch of which it is a part.
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


class Plan:
    """The global order.

    Parameters
    ----------
    per_shard : sequence of int, shape (shards,)
        Samples of each shard; sample numbers run through the shards.
    seed : int
    window : int
        0, local mode: all samples are shuffled together. w > 0, object mode: shards are shuffled, then samples within
        each w consecutive shards of a lane, so that N ranks read about 1 / N of the shards each and hold
        :meth:`open_shards` at a time.
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
        assert weights is None or participant is None, "an epoch goes by weights or by participants"
        self.seed, self.window = seed, window
        self.ends = np.cumsum(np.asarray(per_shard, dtype=np.int64))
        total = int(self.ends[-1]) if len(self.ends) else 0
        chosen = np.ones(total, dtype=bool) if selected is None else selected
        assert len(chosen) == total, (len(chosen), total)
        rows = Rows(self.ends, chosen)
        if not rows.length:
            raise UserError("the plan has no images to draw from; choose another data.split, or data.split=all")
        self._sampling: Sampling
        if weights is not None:
            self._sampling = Weighted(seed, rows, weights[chosen])
        elif participant is not None:
            self._sampling = OnePerParticipant(seed, rows, participant[chosen])
        else:
            self._sampling = EveryImage(rows)
        # At most one a shard, and the same in every epoch, or a rank's part of the shards would jump. A power of two
        # divides the batches that people use, and then a rank's lanes stay the same: see `share`.
        most = min(LANES, int((rows.per_shard > 0).sum()), len(self)) if window else 1
        self.lanes = 1 << most.bit_length() - 1
        self._epochs: dict[int, tuple[Entries, EpochOrder]] = {}

    def __len__(self) -> int:
        """Entries of an epoch."""
        return self._sampling.length

    def take(self, position: int, count: int, without: AbstractSet[int] = frozenset()) -> Slice:
        """Return the next samples of the stream.

        Parameters
        ----------
        position : int
            Where to start; the state of a run.
        count : int
            How many.
        without : set of int
            Samples to exclude, because they cannot be read; the stream fills their place. All ranks must hold the
            same set.

        Returns
        -------
        Slice
            `count` samples; its `end` is `position`, plus `count`, plus the entries excluded among them.

        Raises
        ------
        UserError
            All are to be excluded.
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
        """Return a rank's part of a global batch; the parts of all ranks, in turn, are the batch.

        In object mode the batch is divided by lanes, so that a rank stays with its shards: if the batch is a multiple
        or a divisor of the 64 lanes, it reads the lanes that are its own, and 1 / N of the bytes; if not, those of its
        neighbours too (measured: 1.6 to 2.3 times as much for batches of 100, 1.1 to 1.3 times for 1,000). Parts differ
        by one sample at most, and are empty where there are more ranks than samples.
        """
        first, last = (len(piece) * turn // world for turn in (rank, rank + 1))
        return piece[np.argsort(self._lane(piece.position), kind="stable")[first:last]]

    def shards_ahead(self, position: int, count: int, rank: int, world: int, batch: int) -> np.ndarray:
        """Return which shards a rank is about to need.

        Parameters
        ----------
        position : int
        count : int
            How far to look, in entries of the stream. Samples skipped are not known here: each moves what follows
            by one.
        rank, world : int
        batch : int
            Samples of a global batch, the first of which starts at `position`.

        Returns
        -------
        ndarray of int64
            Shards in the order of their first use, each once.
        """
        ahead = np.arange(count)
        number, place = np.divmod(ahead[np.lexsort((self._lane(position + ahead), ahead // batch))], batch)
        within = ahead % batch  # sorting has left each batch where it was
        size = np.minimum(batch, count - number * batch)
        mine = (within >= size * rank // world) & (within < size * (rank + 1) // world)
        shards = self._locate(np.sort(position + number[mine] * batch + place[mine]))[2]
        _, first = np.unique(shards, return_index=True)
        return shards[np.sort(first)]

    def shard_of(self, sample: np.ndarray) -> np.ndarray:
        """Return the shards of samples, int64, shape (n,)."""
        return np.searchsorted(self.ends, sample, side="right")

    def open_shards(self, world: int) -> float:
        """Return how many shards a rank has in use at a time, at most; infinite in local mode.

        Between one step and the next, for batches that are a multiple or a divisor of the number of lanes.
        """
        return min(self.lanes, -(-self.lanes // world) + 1) * self.window if self.window else float("inf")

    def _lane(self, position: np.ndarray) -> np.ndarray:
        return position % len(self) % self.lanes

    def _read(self, start: int, count: int) -> Slice:
        """Return the samples at `count` positions from `start`, unreadable or not."""
        position = np.arange(start, start + count)
        epoch, entry, _ = self._locate(position)
        sample = np.empty(len(position), dtype=np.int64)
        for number, run in _runs(epoch):
            sample[run] = self._epoch(number)[0].rows(entry[run])
        return Slice(sample, epoch, position, start + count)

    def _locate(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return epochs, entries and shards at positions, ascending; int64, shape (n,) each."""
        epoch, place = np.divmod(position, len(self))
        entry, shard = np.empty_like(place), np.empty_like(place)
        for number, run in _runs(epoch):
            entry[run], shard[run] = self._epoch(number)[1].locate(place[run])
        return epoch, entry, shard

    def _epoch(self, number: int) -> tuple[Entries, EpochOrder]:
        known = self._epochs.get(number)
        if known is None:
            entries = self._sampling.epoch(number)
            known = entries, EpochOrder(self.seed, number, entries.per_shard, self.lanes, self.window)
            # A new dict, so that a thread which looks ahead needs no lock: at worst both compute the same.
            kept = sorted(self._epochs.items(), key=lambda item: abs(item[0] - number))[: EPOCHS_KEPT - 1]
            self._epochs = dict(kept) | {number: known}
        return known


def _runs(epoch: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Yield each epoch of an ascending array, and where it is."""
    edges = [0, *(np.flatnonzero(np.diff(epoch)) + 1).tolist(), len(epoch)]
    for start, stop in pairwise(edges):
        if start < stop:
            yield int(epoch[start]), slice(start, stop)
