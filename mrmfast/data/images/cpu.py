"""The CPU path: libjpeg-turbo decodes (at reduced scale where that is enough), one fused warp in C does the rest.

Neither holds the interpreter lock, so plain threads suffice: no processes, no copies between them. What limits their
number is the lock itself: how often a picture takes it, and for how long (``python -m benchmarks.loader.threads``).
So a thread decodes GROUP pictures into memory of its own and warps them in one call, and no address is asked for twice.
Memory of batches is used again once nobody holds them.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from mrmfast import native
from mrmfast.batch import PIXEL_MEAN, PIXEL_STD
from mrmfast.data.images.backend import Fed, Pixels
from mrmfast.data.images.buffers import Buffers
from mrmfast.data.images.decode_memory import SPARE, DecodeMemory
from mrmfast.meters import Meters

CHUNK = 8  # pictures a task: few enough to share a batch among threads, enough to make hand-overs cheap
GROUP = 4  # decoded pictures that one call warps: the time of a picture is the same from 1 to 8, the lock is taken less
FLAGS = ("-O3", "-march=native", "-std=c11", "-ffp-contract=off")
# Normalised = byte * scale + shift: three scales, then three shifts.
NORMAL = np.concatenate([1 / (255 * np.array(PIXEL_STD)), -np.array(PIXEL_MEAN) / PIXEL_STD]).astype(np.float32)
NORMAL_ADDRESS = NORMAL.ctypes.data


class CPUImages:
    """Decode and warp in threads; the contract and the parameters are those of :mod:`mrmfast.data.images.backend`."""

    def __init__(
        self,
        source: Callable[[], Fed],
        *,
        batch: int,
        stored_size: int,
        size: int,
        device: torch.device,
        threads: int,
        depth: int,
        meters: Meters,
        pixels: Pixels = "uint8",
    ) -> None:
        self._source, self._size, self._device, self._meters = source, size, device, meters
        self._floats = pixels == "float32"
        self._shape = (batch, 3, size, size) if self._floats else (batch, size, size, 3)
        # One in the caller's hands, one being taken, `depth` waiting and one being filled.
        self._buffers = Buffers(self._shape, pixels, keep=depth + 3)
        self._slot_side = min(
            stored_size, 2 * size
        )  # libjpeg's next smaller scale would still do beyond twice the size
        self._closed = threading.Event()
        self._ready: queue.Queue[_Batch | BaseException] = queue.Queue(maxsize=depth)
        self._tasks: queue.SimpleQueue[tuple[_Batch, int] | None] = queue.SimpleQueue()
        self._decoders = [
            threading.Thread(target=self._work, name=f"mrmfast-decode-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._decoders:
            thread.start()
        self._feeder = threading.Thread(target=self._feed, name="mrmfast-feed", daemon=True)
        self._feeder.start()

    def _feed(self) -> None:
        while not self._closed.is_set():
            item: _Batch | BaseException
            try:
                item = self._begin(*self._source())
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

    def _begin(self, jpegs: list[np.ndarray], matrices: np.ndarray, keys: list[str]) -> _Batch:
        batch = _Batch(jpegs, np.ascontiguousarray(matrices, dtype=np.float32), self._memory()[: len(jpegs)])
        for start in range(0, len(jpegs), CHUNK):
            self._tasks.put((batch, start))
        return batch

    def _memory(self) -> Tensor:
        if self._device.type == "cuda":
            # Pinned memory is torch's to reuse: it knows when a copy to the GPU has ended.
            return torch.empty(self._shape, dtype=torch.float32 if self._floats else torch.uint8, pin_memory=True)
        return torch.from_numpy(self._buffers.take())

    def _work(self) -> None:
        """Take chunks of batches until there are no more."""
        memory = DecodeMemory(GROUP, self._slot_side, self._size)
        while (task := self._tasks.get()) is not None:
            batch, start = task
            try:
                if not self._closed.is_set():
                    self._chunk(memory, batch, start)
            except BaseException as error:  # it belongs to the caller of run()
                batch.error = error
            batch.finish()
            del task, batch  # the memory of a batch comes back when nobody holds it, and this thread may wait for long

    def _chunk(self, memory: DecodeMemory, batch: _Batch, start: int) -> None:
        """Decode and warp CHUNK pictures of a batch into their places."""
        end = min(start + CHUNK, len(batch.jpegs))
        decoding = warping = 0.0
        began = time.perf_counter()
        for first in range(start, end, GROUP):
            last = min(first + GROUP, end)
            for number in range(first, last):
                if not memory.decode(batch.jpegs[number], number):
                    batch.bad[number] = True
                    batch.array[number] = NORMAL[3:, None, None] if self._floats else 0
            decoded = time.perf_counter()
            self._warp(memory, batch)
            decoding, warping, began = decoding + decoded - began, warping - decoded, time.perf_counter()
            warping += began
        self._meters.add("decode", decoding, end - start, start=began - decoding - warping)
        self._meters.add("augment", warping, end - start, start=began - warping)

    def _warp(self, memory: DecodeMemory, batch: _Batch) -> None:
        kernel = library()
        if kernel is None:
            for number, picture in memory.pictures():
                warp(picture, batch.matrices[number], batch.array[number])
        else:
            scale = NORMAL_ADDRESS if self._floats else None
            kernel.warp_group(
                memory.count,
                memory.items,
                batch.matrices_at,
                batch.images_at,
                batch.step,
                self._size,
                scale,
                memory.line,
            )
        memory.clear()

    def run(self) -> tuple[Tensor, np.ndarray]:
        """Wait for the next batch: see :class:`mrmfast.data.images.backend.Images`."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # asked again, it answers the same
            raise item
        item.done.wait()
        if item.error is not None:
            raise item.error
        return (item.images if self._floats else item.images.permute(0, 3, 1, 2)), item.bad

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


class _Batch:
    """A batch under way; its addresses are asked for once, since NumPy takes microseconds to tell one."""

    def __init__(self, jpegs: list[np.ndarray], matrices: np.ndarray, images: Tensor) -> None:
        self.jpegs, self.matrices, self.images, self.array = jpegs, matrices, images, images.numpy()
        self.bad = np.zeros(len(jpegs), dtype=bool)
        self.matrices_at, self.images_at = matrices.ctypes.data, images.data_ptr()
        self.step = images[:1].nbytes
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._left, self._lock = len(range(0, len(jpegs), CHUNK)), threading.Lock()
        if not jpegs:
            self.done.set()

    def finish(self) -> None:
        """Count a chunk as done."""
        with self._lock:
            self._left -= 1
            if not self._left:
                self.done.set()


def warp(picture: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> None:
    """Warp one square picture into `out`; the last of the resizing (up or down by ``FUSED``) is part of it.

    Parameters
    ----------
    picture : ndarray, uint8, (S, S, 3)
        The start of a buffer with ``SPARE`` bytes after it.
    matrix : ndarray, float32, (2, 3)
        From output to input pixels, both of a picture of the output's size (:mod:`mrmfast.data.images.augment`).
    out : ndarray, uint8, (size, size, 3), or float32, (3, size, size)
        Filled: bilinear between pixel centres, black outside; floats normalised by ``PIXEL_MEAN`` and ``PIXEL_STD``.
    """
    side, size, floats = len(picture), out.shape[1], out.dtype == np.float32
    kernel = library()
    if side != size:
        matrix = matrix * np.float32(side / size)
    if kernel is not None:
        line = np.empty(size * 3 + SPARE, dtype=np.uint8)
        scale = NORMAL.ctypes.data if floats else None
        kernel.warp(picture.ctypes.data, side, side, matrix.ctypes.data, out.ctypes.data, size, scale, line.ctypes.data)
        return
    at_corners = matrix.astype(np.float64)  # OpenCV counts from pixel centres
    at_corners[:, 2] += (at_corners[:, :2].sum(1) - 1) / 2
    pixels = cv2.warpAffine(picture, at_corners, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    out[:] = pixels.transpose(2, 0, 1) * NORMAL[:3, None, None] + NORMAL[3:, None, None] if floats else pixels


def warp_reference(picture: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Warp as :func:`warp` does, plainly and in float64.

    Parameters
    ----------
    picture : ndarray, uint8, (H, W, 3)
    matrix : ndarray, (2, 3)
        From output to input pixels.
    size : int

    Returns
    -------
    ndarray, uint8, (size, size, 3)
    """
    rows, columns = np.mgrid[:size, :size] + 0.5
    x, y = (line[0] * columns + line[1] * rows + line[2] - 0.5 for line in matrix.astype(np.float64))
    framed = np.pad(picture.astype(np.float64), ((1, 2), (1, 2), (0, 0)))
    left = np.clip(np.floor(x), -1, picture.shape[1]).astype(int)
    top = np.clip(np.floor(y), -1, picture.shape[0]).astype(int)
    across, down = np.clip(x - left, 0, 1)[..., None], np.clip(y - top, 0, 1)[..., None]
    above = framed[top + 1, left + 1] * (1 - across) + framed[top + 1, left + 2] * across
    below = framed[top + 2, left + 1] * (1 - across) + framed[top + 2, left + 2] * across
    inside = (x > -1) & (x < picture.shape[1]) & (y > -1) & (y < picture.shape[0])
    return np.floor((above * (1 - down) + below * down) * inside[..., None] + 0.5).astype(np.uint8)


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled warp; None, and a warning, where it cannot be built."""
    loaded = native.load(
        Path(__file__).with_name("warp.c"), FLAGS, name="warp", otherwise="Augmentation takes three times as long"
    )
    if loaded is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
        loaded.warp.argtypes = [pointer, size, size, pointer, pointer, size, pointer, pointer]
        loaded.warp.restype = None
        loaded.warp_group.argtypes = [size, pointer, pointer, pointer, size, size, pointer, pointer]
        loaded.warp_group.restype = None
    return loaded
