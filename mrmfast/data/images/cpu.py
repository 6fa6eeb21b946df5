"""The CPU path: libjpeg-turbo decodes an image once, one fused warp in C makes each view of it.

Three kinds of threads work on a batch. The feeder thread asks the source for a :class:`DecodeRequest`, takes memory for
the result and puts chunks of CHUNK images into a queue. Decoding threads take chunks: each decodes GROUP images
into memory of its own (:mod:`.decode_memory`) and warps them into their places, view by view (:mod:`.warp`). The thread
that calls :meth:`CPUImages.run` waits until all chunks of the oldest batch are done. Example: with CHUNK = 8 and two
decoding threads, a batch of 20 is the chunks 0-7, 8-15 and 16-19. One thread may take the first and the third, the
other the second, in any order; the result is the same.

Decoder and warp release the interpreter lock, so plain threads suffice: no processes, no copies between them. What
limits the number of threads is the lock itself: how often an image takes it, and for how long (``python -m
benchmarks.loader.threads``). So one call warps a group, and no address is asked for twice. Memory of batches is used
again once nobody holds them (:mod:`.buffers`).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mrmfast.data.images.augment import largest_needed_side, needed_side
from mrmfast.data.images.backend import DecodedBatch, DecodeRequest, DecodeSpec
from mrmfast.data.images.buffers import Buffers
from mrmfast.data.images.decode_memory import DecodeMemory
from mrmfast.data.images.masks import UNKNOWN, decode_mask
from mrmfast.data.images.warp import NORMAL, NORMAL_ADDRESS, library, warp, warp_mask
from mrmfast.meters import Meters

CHUNK = 8  # images a task: few enough to share a batch among threads, enough to make hand-overs cheap
GROUP = 4  # decoded images that one call warps: the time of an image is the same from 1 to 8, the lock is taken less


class CPUImages:
    """Decode and warp in threads; the contract and the parameters are those of :mod:`mrmfast.data.images.backend`."""

    def __init__(self, source: Callable[[], DecodeRequest], spec: DecodeSpec, meters: Meters) -> None:
        self._source, self._spec, self._meters = source, spec, meters
        # One batch in the caller's hands, one being taken, `depth` waiting and one being filled.
        keep = spec.depth + 3
        self._views = [
            BatchMemory((spec.batch, 3, size, size) if spec.pixels == "float32" else (spec.batch, size, size, 3),
                        spec.pixels, spec.device, keep)
            for size in spec.sizes
        ]  # fmt: skip
        self._mask: BatchMemory | None = None
        if spec.mask_channels:
            shape = (spec.batch, sum(spec.mask_channels), spec.sizes[0], spec.sizes[0])
            self._mask = BatchMemory(shape, "uint8", spec.device, keep)
        # Beyond twice the side needed, libjpeg's next smaller scale would do as well.
        self._slot_side = min(spec.stored_size, 2 * max(map(largest_needed_side, spec.views)))
        self._closed = threading.Event()
        self._ready: queue.Queue[BatchUnderWay | BaseException] = queue.Queue(maxsize=spec.depth)
        self._tasks: queue.SimpleQueue[tuple[BatchUnderWay, int] | None] = queue.SimpleQueue()
        self._decoders = [
            threading.Thread(target=self._work, name=f"mrmfast-decode-{number}", daemon=True)
            for number in range(spec.threads)
        ]
        for thread in self._decoders:
            thread.start()
        self._feeder = threading.Thread(target=self._feed, name="mrmfast-feed", daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        """Begin batches, at most `depth` ahead of :meth:`run`."""
        while not self._closed.is_set():
            item: BatchUnderWay | BaseException
            try:
                item = self._begin(self._source())
            except BaseException as error:  # whatever it is, it belongs to the caller of run()
                item = error
            while not self._closed.is_set():
                try:
                    self._ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return

    def _begin(self, request: DecodeRequest) -> BatchUnderWay:
        count = len(request.jpegs)
        batch = BatchUnderWay(
            request,
            self._needed_sides(request),
            [memory.take(count) for memory in self._views],
            None if self._mask is None else self._mask.take(count),
        )
        for start in range(0, count, CHUNK):
            self._tasks.put((batch, start))
        return batch

    def _needed_sides(self, request: DecodeRequest) -> Sequence[tuple[int, ...]]:
        """Return, per image and view, the side that the whole image must have."""
        if all(view.crop is None for view in self._spec.views):
            return [self._spec.sizes] * len(request.jpegs)
        sides = [needed_side(matrices, size) for matrices, size in zip(request.matrices, self._spec.sizes, strict=True)]
        return list(zip(*(side.tolist() for side in sides), strict=True))

    def _work(self) -> None:
        """Take chunks of batches until there are no more."""
        memory = DecodeMemory(GROUP, self._slot_side, self._spec.sizes)
        while (task := self._tasks.get()) is not None:
            batch, start = task
            try:
                if not self._closed.is_set():
                    self._chunk(memory, batch, start)
            except BaseException as error:  # it belongs to the caller of run()
                batch.error = error
            batch.finish()
            del task, batch  # the memory of a batch comes back when nobody holds it, and this thread may wait for long

    def _chunk(self, memory: DecodeMemory, batch: BatchUnderWay, start: int) -> None:
        """Decode and warp CHUNK images of a batch into their places."""
        end = min(start + CHUNK, len(batch.request.jpegs))
        decoding = warping = 0.0
        began = time.perf_counter()
        for first in range(start, end, GROUP):
            last = min(first + GROUP, end)
            for number in range(first, last):
                if not memory.decode(batch.request.jpegs[number], number, batch.needed[number]):
                    batch.bad[number] = True
            decoded = time.perf_counter()
            for view in range(len(self._views)):
                self._warp(memory, batch, view)
            memory.clear()
            decoding, warping, began = decoding + decoded - began, warping - decoded, time.perf_counter()
            warping += began
        if batch.mask is not None:
            self._masks(batch, batch.mask.numpy(), range(start, end))
            warping, began = warping - began, time.perf_counter()
            warping += began
        for number in (np.flatnonzero(batch.bad[start:end]) + start).tolist():
            self._blacken(batch, number)
        self._meters.add("decode", decoding, end - start, start=began - decoding - warping)
        self._meters.add("augment", warping, end - start, start=began - warping)

    def _warp(self, memory: DecodeMemory, batch: BatchUnderWay, view: int) -> None:
        """Warp the images of a group into one view of the batch."""
        kernel = library()
        if kernel is None:
            for number, image in memory.images(view):
                warp(image, batch.matrices[view][number], batch.arrays[view][number])
        else:
            kernel.warp_group(
                memory.count,
                memory.items[view],
                batch.matrices_at[view],
                batch.views_at[view],
                batch.steps[view],
                self._spec.sizes[view],
                NORMAL_ADDRESS if self._spec.pixels == "float32" else None,
                memory.line,
            )

    def _masks(self, batch: BatchUnderWay, out: np.ndarray, numbers: range) -> None:
        """Decode and warp the masks of some images; one that cannot be decoded makes the sample a bad one."""
        for number in numbers:
            first = 0
            for pngs, channels in zip(batch.request.masks, self._spec.mask_channels, strict=True):
                png, planes = pngs[number], out[number, first : first + channels]
                first += channels
                mask = None if png is None else decode_mask(png, channels)
                if mask is not None:
                    warp_mask(mask, batch.matrices[0][number], planes)
                else:
                    planes[:] = UNKNOWN
                    batch.bad[number] |= png is not None

    def _blacken(self, batch: BatchUnderWay, number: int) -> None:
        """Fill the place of an image that cannot be decoded."""
        for array in batch.arrays:
            array[number] = NORMAL[3:, None, None] if self._spec.pixels == "float32" else 0
        if batch.mask is not None:
            batch.mask[number] = UNKNOWN

    def run(self) -> DecodedBatch:
        """Wait for the next batch: see :class:`mrmfast.data.images.backend.Images`."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # asked again, it answers the same
            raise item
        item.done.wait()
        if item.error is not None:
            raise item.error
        views = item.views
        if self._spec.pixels == "uint8":
            views = [view.permute(0, 3, 1, 2) for view in views]
        return DecodedBatch(tuple(views), item.bad, item.mask)

    def close(self) -> None:
        """Stop the threads: those that decode after the chunk at hand, the feeder once its source answers."""
        self._closed.set()
        while True:
            try:
                self._ready.get_nowait()
            except queue.Empty:
                break
        self._feeder.join()
        for _ in self._decoders:
            self._tasks.put(None)
        for thread in self._decoders:
            thread.join()


class BatchMemory:
    """Memory of one tensor of every batch.

    Parameters
    ----------
    shape : tuple of int
        Of the largest batch.
    dtype : {"uint8", "float32"}
    device : torch.device
        Where the batches go: for a GPU the memory is pinned.
    keep : int
        Batches at a time.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, device: torch.device, keep: int) -> None:
        self._shape, self._dtype, self._pinned = shape, getattr(torch, dtype), device.type == "cuda"
        self._buffers = Buffers(shape, dtype, keep=keep)

    def take(self, count: int) -> Tensor:
        """Return the memory of a batch of `count` samples, with whatever values it last had."""
        if self._pinned:
            # Pinned memory is torch's to reuse: it knows when a copy to the GPU has ended.
            return torch.empty(self._shape, dtype=self._dtype, pin_memory=True)[:count]
        return torch.from_numpy(self._buffers.take())[:count]


class BatchUnderWay:
    """A batch that is being decoded; its addresses are asked for once, since NumPy takes microseconds to tell one."""

    def __init__(
        self, request: DecodeRequest, needed: Sequence[tuple[int, ...]], views: list[Tensor], mask: Tensor | None
    ) -> None:
        self.request, self.needed, self.views, self.mask = request, needed, views, mask
        self.matrices = [np.ascontiguousarray(matrices, dtype=np.float32) for matrices in request.matrices]
        self.arrays = [view.numpy() for view in views]
        self.matrices_at = [matrices.ctypes.data for matrices in self.matrices]
        self.views_at, self.steps = [view.data_ptr() for view in views], [view[:1].nbytes for view in views]
        self.bad = np.zeros(len(request.jpegs), dtype=bool)
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._left, self._lock = len(range(0, len(request.jpegs), CHUNK)), threading.Lock()
        if not request.jpegs:
            self.done.set()

    def finish(self) -> None:
        """Count a chunk as done."""
        with self._lock:
            self._left -= 1
            if not self._left:
                self.done.set()
