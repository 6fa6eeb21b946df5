"""Calls that take turns, each with an empty folder: what slows the machine for a moment slows all sides."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# Given an empty folder; returns its own seconds, where not all that it does is to be counted.
Call = Callable[[Path], float | None]


class Turns:
    """Seconds of calls that took turns, after a turn that isn't counted; ratios are medians over the turns.

    Parameters
    ----------
    calls : dict of str to callable
    work : Path
        Where the empty folder is made, again for each call.
    repeats : int
    """

    def __init__(self, calls: dict[str, Call], work: Path, repeats: int) -> None:
        self._seconds: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(repeats + 1):
            for name, call in calls.items():
                folder = work / "cold"
                folder.mkdir()
                start = time.perf_counter()
                own = call(folder)
                took = time.perf_counter() - start if own is None else own
                shutil.rmtree(folder)
                if repeat:
                    self._seconds[name].append(took)

    def median(self, name: str) -> float:
        """Return the median seconds of a call."""
        return statistics.median(self._seconds[name])

    def speed(self, name: str, other: str) -> float:
        """Return how many times as fast as `other` a call is."""
        return statistics.median(b / a for a, b in zip(self._seconds[name], self._seconds[other], strict=True))
