"""The CPU path: libjpeg-turbo decodes (at reduced scale where that is enough), one fused warp in C does the rest.

Neither holds the interpreter lock, so plain threads suffice: no processes, no copies between them. Memory of batches is
used again once nobody holds them.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch
from torch import Tensor

from mrmfast import native
from mrmfast.batch import PIXEL_MEAN, PIXEL_STD
from mrmfast.data.images.backend import LARGEST, Fed, Pixels
from mrmfast.data.images.buffers import Buffers
from mrmfast.meters import Meters

CHUNK = 8  # pictures a task: few enough to share a batch among threads, enough to make hand-overs cheap
SPARE = 32  # bytes after a decoded picture that the warp may read
FUSED = 1.3  # largest reduction that a bilinear warp does without visible aliasing; beyond, pixels are averaged first
FLAGS = ("-O3", "-march=native", "-std=c11", "-ffp-contract=off")
# Normalised = byte * scale + shift: three scales, then three shifts.
NORMAL = np.concatenate([1 / (255 * np.array(PIXEL_STD)), -np.array(PIXEL_MEAN) / PIXEL_STD]).astype(np.float32)


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
        self._scratch = threading.local()
        self._closed = threading.Event()
        self._ready: queue.Queue[_Batch | BaseException] = queue.Queue(maxsize=depth)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mrmfast-decode")
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
        images = self._memory()[: len(jpegs)]
        bad = np.zeros(len(jpegs), dtype=bool)
        matrices = np.ascontiguousarray(matrices, dtype=np.float32)
        work = [
            self._pool.submit(self._chunk, jpegs, matrices, images.numpy(), bad, start)
            for start in range(0, len(jpegs), CHUNK)
        ]
        return _Batch(images, bad, work)

    def _memory(self) -> Tensor:
        if self._device.type != "cuda":
            return torch.from_numpy(self._buffers.take())
        # Pinned memory is torch's to reuse: it knows when a copy to the GPU has ended.
        return torch.empty(self._shape, dtype=torch.float32 if self._floats else torch.uint8, pin_memory=True)

    def _chunk(
        self, jpegs: list[np.ndarray], matrices: np.ndarray, images: np.ndarray, bad: np.ndarray, first: int
    ) -> None:
        """Decode and warp CHUNK pictures of a batch into their places."""
        last = min(first + CHUNK, len(jpegs))
        decoding = warping = 0.0
        begun = time.perf_counter()
        for number in range(first, last):
            if self._closed.is_set():
                return
            picture = self._decode(jpegs[number])
            decoded = time.perf_counter()
            decoding += decoded - begun
            if picture is None:
                bad[number] = True
                images[number] = NORMAL[3:, None, None] if self._floats else 0
            else:
                warp(picture, matrices[number], images[number])
            begun = time.perf_counter()
            warping += begun - decoded
        self._meters.add("decode", decoding, last - first, start=begun - decoding - warping)
        self._meters.add("augment", warping, last - first, start=begun - warping)

    def _decode(self, jpeg: np.ndarray) -> np.ndarray | None:
        """Decode to RGB, at the smallest of libjpeg's scales that is not below the output; None if it cannot be."""
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
            if height * width > LARGEST:
                return None
            room = height * width * 3 + SPARE
            scratch: np.ndarray | None = getattr(self._scratch, "buffer", None)
            if scratch is None or len(scratch) < room:
                scratch = self._scratch.buffer = np.empty(room, dtype=np.uint8)
            # strict: what libjpeg only warns of (a truncated or damaged stream, filled up with grey) is an error here.
            picture = simplejpeg.decode_jpeg(
                jpeg, "RGB", min_height=self._size, min_width=self._size, buffer=scratch, strict=True
            )
        except ValueError:
            return None
        return _reduced(picture, self._size)

    def run(self) -> tuple[Tensor, np.ndarray]:
        """Wait for the next batch: see :class:`mrmfast.data.images.backend.Images`."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ready.put(item)  # asked again, it answers the same
            raise item
        for future in item.work:
            future.result()
        return (item.images if self._floats else item.images.permute(0, 3, 1, 2)), item.bad

    def close(self) -> None:
        """Stop the threads: those that decode after the picture at hand, the feeder once its source answers."""
        self._closed.set()
        while True:
            try:
                self._ready.get_nowait()
            except queue.Empty:
                break
        self._feeder.join()
        self._pool.shutdown(wait=True, cancel_futures=True)


class _Batch:
    """A batch under way."""

    def __init__(self, images: Tensor, bad: np.ndarray, work: list[Future[None]]) -> None:
        self.images, self.bad, self.work = images, bad, work


def _reduced(picture: np.ndarray, size: int) -> np.ndarray:
    """Average a picture that is much larger than the output, or not square, down to it."""
    height, width = picture.shape[:2]
    if height == width and height <= FUSED * size:
        return picture
    reduced = np.empty(size * size * 3 + SPARE, dtype=np.uint8)[: size * size * 3].reshape(size, size, 3)
    larger = height >= size and width >= size
    return cv2.resize(picture, (size, size), dst=reduced, interpolation=cv2.INTER_AREA if larger else cv2.INTER_LINEAR)


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
    return loaded
