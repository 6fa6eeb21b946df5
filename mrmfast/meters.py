"""Where a loader's time goes: seconds, items and bytes per stage, and the spans themselves where a trace is wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("fetch", "read", "decode", "augment", "join", "copy", "wait")


@dataclass
class Stage:
    """Sums of one stage over all threads.

    Attributes
    ----------
    seconds : float
        Busy time; threads that work at once add up.
    items, bytes : int
    """

    seconds: float = 0.0
    items: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Span:
    """One piece of work: stage, thread, start (seconds since the meters began) and length."""

    stage: str
    thread: int
    start: float
    seconds: float
    items: int


@dataclass
class Meters:
    """Counters of one loader; any thread may add to them.

    Attributes
    ----------
    stages : dict of str to Stage
        One per name in ``STAGES``.
    counts : dict of str to int
        Events without a length: retries, images skipped, requests, cache hits, ...
    spans : list of Span, optional
        Filled only where ``trace`` was asked for.
    """

    trace: bool = False
    stages: dict[str, Stage] = field(default_factory=lambda: {name: Stage() for name in STAGES})
    counts: dict[str, int] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @contextmanager
    def time(self, stage: str, items: int = 0, size: int = 0) -> Iterator[None]:
        """Time a block; once per batch or file, never per pixel."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start, items, size, start=start)

    def add(self, stage: str, seconds: float, items: int = 0, size: int = 0, start: float | None = None) -> None:
        """Add work whose length was measured elsewhere (in C, or by another library)."""
        with self._lock:
            total = self.stages[stage]
            total.seconds += seconds
            total.items += items
            total.bytes += size
            if self.trace:
                begin = (time.perf_counter() - seconds if start is None else start) - self.began
                self.spans.append(Span(stage, threading.get_ident(), begin, seconds, items))

    def count(self, event: str, number: int = 1) -> None:
        """Count an event."""
        with self._lock:
            self.counts[event] = self.counts.get(event, 0) + number

    def slowest(self) -> str:
        """Name the stage of the loader that takes most of its threads' time."""
        return max(
            (name for name in STAGES if name not in ("copy", "wait")), key=lambda name: self.stages[name].seconds
        )
