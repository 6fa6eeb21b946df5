"""Bytes of samples out of shards: random access through memory maps, a bounded number of them open."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from mrmfast.formats.manifest import Shard
from mrmfast.formats.sample_table import MaskColumn, SampleTable
from mrmfast.meters import Meters
from mrmfast.storage.source import DatasetSource


class ShardReader:
    """Hand out the bytes of JPEGs and masks by sample number.

    Parameters
    ----------
    source : DatasetSource
        Fetches shards and keeps them in its cache as long as they are in use here.
    shards : list of Shard
    table : SampleTable
    meters : Meters
        Stage ``read``.
    limit : int
        Shards open at a time; the least recently used one is closed first. The system bounds maps and files.
    """

    def __init__(
        self, source: DatasetSource, shards: list[Shard], table: SampleTable, meters: Meters, limit: int
    ) -> None:
        self._source, self._shards, self._table, self._meters = source, shards, table, meters
        self._limit = limit
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()
        self._ahead: set[int] = set()  # fetched ahead, not yet read

    def prefetch(self, numbers: np.ndarray) -> None:
        """Begin to fetch shards that will be read soon; returns at once."""
        wanted = set(numbers.tolist()) - self._open.keys()
        self._ahead |= wanted
        self._source.prefetch(self._shards[number] for number in numbers.tolist() if number in wanted)

    def read(self, samples: np.ndarray) -> list[np.ndarray]:
        """Return the JPEG bytes of samples, uint8 views of the mapped shards; waits for those still being fetched."""
        table = self._table
        with self._meters.time("read", len(samples), int(table.size[samples].sum())):
            # Lists, since taking a number out of an array costs Python more than all else here.
            numbers, starts = table.shard[samples].tolist(), table.offset[samples].tolist()
            ends = (table.offset[samples] + table.size[samples]).tolist()
            return [self._map(number)[start:end] for number, start, end in zip(numbers, starts, ends, strict=True)]

    def read_masks(self, samples: np.ndarray, mask: MaskColumn) -> list[np.ndarray | None]:
        """Return the PNG bytes of one mask of samples; None where a sample has no such mask."""
        sizes = mask.size[samples]
        with self._meters.time("read", 0, int(sizes.sum())):
            numbers, starts = self._table.shard[samples].tolist(), mask.offset[samples].tolist()
            return [
                self._map(number)[start : start + size] if size else None
                for number, start, size in zip(numbers, starts, sizes.tolist(), strict=True)
            ]

    def _map(self, number: int) -> np.ndarray:
        mapped = self._open.get(number)
        if mapped is None:
            self._ahead.discard(number)
            # A plain array: slices of np.memmap run Python code of NumPy's.
            mapped = np.asarray(np.memmap(self._source.local(self._shards[number]), mode="r"))
            self._open[number] = mapped
            while len(self._open) > self._limit:
                # A map that was handed out stays valid until the last view of it is gone.
                oldest, _ = self._open.popitem(last=False)
                self._source.release(self._shards[oldest])
        self._open.move_to_end(number)
        return mapped

    def close(self) -> None:
        """Let go of all shards, those fetched ahead as well."""
        for number in (*self._open, *self._ahead):
            self._source.release(self._shards[number])
        self._open.clear()
        self._ahead.clear()
