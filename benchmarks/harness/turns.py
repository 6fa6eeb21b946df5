"""Calls that take turns: what slows the machine for a moment slows all sides."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

# Given an empty folder; returns its own seconds, where not all that it does is to be counted.
Call = Callable[[Path], float | None]


def in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, before: Callable[[], object] | None = None
) -> dict[str, float]:
    """Return the median seconds of each call over `rounds`, after a round that isn't counted.

    Parameters
    ----------
    calls : mapping of str to callable
        Each round begins with the next of them, so that none always follows the same one.
    rounds : int
    before : callable, optional
        Made before each call, and not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(1 + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if before is not None:
                before()
            start = time.perf_counter()
            calls[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


class Turns:
    """Seconds of calls that took turns, each with an empty folder, after a turn that isn't counted.

    Ratios are medians over the turns.

    Parameters
    ----------
    calls : dict of str to callable
    work : Path
        Where the empty folder is made, again for each call.
    repeats : int
    """

    def __init__(self, calls: dict[str, Call], work: Path, repeats: int) -> None:
        self._seconds: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for repeat in range(repeats + 1):
            first = repeat % len(names)  # none always follows the same one
            for name in names[first:] + names[:first]:
                folder = work / "cold"
                folder.mkdir()
                start = time.perf_counter()
                own = calls[name](folder)
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
