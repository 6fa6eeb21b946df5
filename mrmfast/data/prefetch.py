"""Batches on the device before they are needed: the next one is copied on a side stream while the GPU computes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mrmfast.batch import Batch


@dataclass(frozen=True)
class StagedBatch:
    """A batch whose copy to the device is under way.

    Attributes
    ----------
    batch : Batch
        On the device.
    copied : torch.cuda.Event
        Passed once the copy is complete.
    """

    batch: Batch
    copied: Any


class DevicePrefetcher(Iterator[Batch]):
    """Hand out batches on the device.

    On a GPU, :meth:`stage` takes the next batch from the loader and begins its copy on a side stream; called after the
    work of a step is queued, the wait for the loader and the copy are hidden behind that work. The position does not
    change by it: a batch counts once it is handed out. On a CPU batches pass through as they are, and nothing is
    taken ahead.

    Parameters
    ----------
    batches : generator of Batch
        Of :meth:`mrmfast.data.loader.Loader.batches`; closed by :meth:`close`.
    device : torch.device

    Attributes
    ----------
    waited : float
        Seconds that the calling thread has waited for the loader.
    copied : float
        Seconds that it has spent on issuing copies.
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
        """Take the next batch from the loader and begin to copy it, once per batch handed out; raises nothing.

        An error of the loader belongs to the batch that is not there: the :meth:`__next__` that asks for it raises it.
        """
        if self._stream is None or self._staged is not None or self._error is not None:
            return
        try:
            # The loader too: DALI's images are made on the stream that is current.
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
            The loader's stream has an end.
        Exception
            What the loader raised.
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
        # Memory of the side stream is not given to its next batch before the current stream has used it.
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
        """Drop what is staged and close the loader's stream."""
        self._staged = None
        self._batches.close()
