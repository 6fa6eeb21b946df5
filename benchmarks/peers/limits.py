"""What bounds a loader on this machine: decoding alone, decoding and warping in plain OpenCV, copying."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import simplejpeg

from benchmarks.peers.pillow import jpegs
from benchmarks.peers.task import ANGLE, BATCH, THREADS, Task

CHUNK = 32  # images a task


class _Threads:
    """Does something to each JPEG in THREADS threads and keeps nothing."""

    def __init__(self, task: Task) -> None:
        cv2.setNumThreads(1)
        self.task = task
        self._jpegs = [np.frombuffer(jpeg, np.uint8) for jpeg in jpegs(task)]
        self._pool = ThreadPoolExecutor(THREADS)

    def each(self, work: Callable[[np.ndarray], Any]) -> Iterable[list[Any]]:
        """Yield one list a chunk."""
        chunks = [self._jpegs[start : start + CHUNK] for start in range(0, len(self._jpegs), CHUNK)]

        def some(chunk: list[np.ndarray]) -> np.ndarray:
            for jpeg in chunk:
                work(jpeg)
            return np.empty((len(chunk), 0))

        return [[one] for one in self._pool.map(some, chunks)]


class Simplejpeg(_Threads):
    """Decode with simplejpeg (libjpeg-turbo), at a reduced scale where the output is smaller."""

    def epoch(self) -> Iterable[Any]:
        """Give an epoch."""
        size = self.task.size
        return self.each(lambda jpeg: simplejpeg.decode_jpeg(jpeg, "RGB", min_height=size, min_width=size))


class OpenCV(_Threads):
    """Decode with OpenCV, at half scale where the output is smaller by half or more."""

    def epoch(self) -> Iterable[Any]:
        """Give an epoch."""
        half = self.task.stored >= 2 * self.task.size
        return self.each(lambda jpeg: cv2.imdecode(jpeg, cv2.IMREAD_REDUCED_COLOR_2 if half else cv2.IMREAD_COLOR))


class OpenCVWarp(_Threads):
    """Decode, then one bilinear warp that rotates and resizes, to uint8."""

    def epoch(self) -> Iterable[Any]:
        """Give an epoch."""
        size, half = self.task.size, self.task.stored >= 2 * self.task.size
        generator = np.random.default_rng()

        def work(jpeg: np.ndarray) -> None:
            image = cv2.imdecode(jpeg, cv2.IMREAD_REDUCED_COLOR_2 if half else cv2.IMREAD_COLOR)
            assert image is not None
            side = len(image)
            matrix: Any = cv2.getRotationMatrix2D((side / 2, side / 2), generator.uniform(-ANGLE, ANGLE), size / side)
            matrix[:, 2] += (size - side) / 2
            cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)

        return self.each(work)


class Copy:
    """Copy batches of floats: one read and one write of memory a byte."""

    def __init__(self, task: Task) -> None:
        self._task = task
        shape = (BATCH, 3, task.size, task.size)
        self._pairs = [(np.zeros(shape, np.float32), np.ones(shape, np.float32)) for _ in range(THREADS)]
        self._pool = ThreadPoolExecutor(THREADS)

    def epoch(self) -> Iterable[Any]:
        """Give as many images as an epoch has."""
        batches = range(-(-self._task.tiles // BATCH))

        def some(number: int) -> np.ndarray:
            here, there = self._pairs[number % THREADS]
            np.copyto(here, there)
            return np.empty((min(BATCH, self._task.tiles - number * BATCH), 0))

        return [[one] for one in self._pool.map(some, batches)]
