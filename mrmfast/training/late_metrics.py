"""Scalars of training steps, read back from the device one step late.

Reading a value waits until the device has computed it. Read at once, the host stands still while the device works, and
the device then stands still while the host prepares the next step. Read one step late, both work at the same time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LAG = 1  # steps that a GPU may run before the metrics of the oldest are read


def allowed_lag(device: torch.device) -> int:
    """Return the maximum number of unread steps: on a CPU a step is complete once it is issued."""
    return LAG if device.type == "cuda" else 0


@dataclass(frozen=True)
class _Entry:
    names: tuple[str, ...]
    host: Tensor
    ready: torch.cuda.Event | None
    note: Any


class LateMetrics:
    """Queue of steps whose scalars are still on the device.

    Values are exact: they are the float32 scalars that the step computed. Every rank reads the same step at the same
    point of the loop.
    """

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, names: tuple[str, ...], values: Tensor, note: Any) -> None:
        """Take the scalars of a step and start copying them to the host.

        Parameters
        ----------
        names : tuple of str
        values : Tensor, float32, (len(names),)
        note : Any
            What the host knows of the step; handed back by :meth:`pop`.
        """
        ready, host = None, values
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self._entries.append(_Entry(names, host, ready, note))

    def pop(self) -> tuple[dict[str, float], Any]:
        """Return the scalars and the note of the oldest step; wait until the device has computed them."""
        entry = self._entries.popleft()
        if entry.ready is not None:
            entry.ready.synchronize()
        return dict(zip(entry.names, entry.host.tolist(), strict=True)), entry.note
