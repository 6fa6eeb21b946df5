"""Batches on the device ahead of time: a side stream copies the next batch while the GPU computes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mrmfast.batch import Batch


@dataclass(frozen=True)
class StagedBatch:
    """A batch that is being copied to the device.

    Attributes
    ----------
    batch : Batch
        On the device.
    copied : torch.cuda.Event
        Recorded after the copy.
    """

    batch: Batch
    copied: Any


class DevicePrefetcher(Iterator[Batch]):
    """Return batches on the device.

    On a GPU, :meth:`stage` takes the next batch from the loader and starts its copy on a side stream. Called after the
    work of a step is queued, it overlaps the wait for the loader and the copy with that work. Staging does not change
    the position of the run: a batch counts once :meth:`__next__` returns it. On a CPU, batches are passed on unchanged
    and nothing is staged.

    Parameters
    ----------
    batches : generator of Batch
        Of :meth:`mrmfast.data.loader.Loader.batches`; closed by :meth:`close`.
    device : torch.device

    Attributes
    ----------
    waited : float
        Seconds for which the calling thread waited for the loader.
    copied : float
        Seconds that the calling thread spent on issuing copies.
    """

    def __init__(self, batches: Generator[Batch], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
        self._staged: StagedBatch | None = None
        self._error: BaseException | None = None
        self.waited = self.copied = 0.0

    def stage(self) -> None:
        """Take the next batch from the loader and start its copy, once per returned batch; raises nothing.

        If the loader raises an error, the next :meth:`__next__` raises it.
        """
        if self._stream is None or self._staged is not None or self._error is not None:
            return
        try:
            # The loader runs inside the context too: DALI decodes images on the current stream.
            with torch.cuda.stream(self._stream):
                batch = self._pull()
                began = time.perf_counter()
                batch = batch.to(self._device)
                copied = torch.cuda.Event()
                copied.record(self._stream)
                self.copied += time.perf_counter() - began
        except Exception as error:
            self._error = error
            return
        self._staged = StagedBatch(batch, copied)

    def __next__(self) -> Batch:
        """Return the next batch, ready for use on the current stream.

        Raises
        ------
        StopIteration
            The loader has no more batches.
        Exception
            Any error of the loader.
        """
        if self._stream is None:
            return self._pull()
        self.stage()
        if self._error is not None:
            raise self._error
        assert self._staged is not None
        staged, self._staged = self._staged, None
        current = torch.cuda.current_stream(self._device)
        current.wait_event(staged.copied)
        # The allocator must not reuse this memory for a later batch before the current stream has read it.
        for tensor in staged.batch.tensors():
            tensor.record_stream(current)
        return staged.batch

    def _pull(self) -> Batch:
        began = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.waited += time.perf_counter() - began

    def close(self) -> None:
        """Drop the staged batch and close the generator of the loader."""
        self._staged = None
        self._batches.close()
