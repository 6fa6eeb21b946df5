"""One way to spread work over processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(job: Callable[[Item], Result], items: Iterable[Item], workers: int, chunk: int = 1) -> Iterator[Result]:
    """Results of ``job`` over ``items`` in order, from this process (one worker) or a pool of fresh ones.

    Fresh ("spawn") because a fork of a process whose libraries run threads can hang.
    """
    if workers == 1:
        yield from map(job, items)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(job, items, chunk)
