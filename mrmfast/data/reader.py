"""Bytes of samples in shards: random access through a bounded number of memory maps."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from mrmfast.formats.manifest import Shard
from mrmfast.formats.sample_table import MaskColumn, SampleTable
from mrmfast.meters import Meters
from mrmfast.storage.source import DatasetSource


class ShardReader:
    """Return the bytes of JPEGs and masks by sample number.

    Parameters
    ----------
    source : DatasetSource
        Fetches shards. Its cache keeps a shard as long as this reader has the shard open.
    shards : list of Shard
    table : SampleTable
    meters : Meters
        Stage ``read``.
    limit : int
        Maximum number of open shards; the least recently used shard is closed first. The system bounds maps and files.
    """

    def __init__(
        self, source: DatasetSource, shards: list[Shard], table: SampleTable, meters: Meters, limit: int
    ) -> None:
        self._source, self._shards, self._table, self._meters = source, shards, table, meters
        self._limit = limit
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()
        self._ahead: set[int] = set()  # fetched ahead, not yet read

    def prefetch(self, numbers: np.ndarray) -> None:
        """Start to fetch shards in the background."""
        missing = set(numbers.tolist()) - self._open.keys()
        self._ahead |= missing
        self._source.prefetch(self._shards[number] for number in numbers.tolist() if number in missing)

    def read(self, samples: np.ndarray) -> list[np.ndarray]:
        """Return the JPEG bytes of samples, uint8 views of the mapped shards; waits for shards being fetched."""
        table = self._table
        with self._meters.time("read", len(samples), int(table.size[samples].sum())):
            # Lists: indexing an array for one number would take most of the time.
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
            # A plain array: slicing np.memmap runs Python code of NumPy.
            mapped = np.asarray(np.memmap(self._source.local(self._shards[number]), mode="r"))
            self._open[number] = mapped
            while len(self._open) > self._limit:
                # A returned map stays valid until its last view is deleted.
                oldest, _ = self._open.popitem(last=False)
                self._source.release(self._shards[oldest])
        self._open.move_to_end(number)
        return mapped

    def close(self) -> None:
        """Release all shards, prefetched shards included."""
        for number in (*self._open, *self._ahead):
            self._source.release(self._shards[number])
        self._open.clear()
        self._ahead.clear()
