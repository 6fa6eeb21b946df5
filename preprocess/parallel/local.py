"""Calls on threads or processes of this machine, by the schedulers of Dask.

Dask is imported on use: the import takes 0.25 s, and user errors are reported before.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from preprocess.parallel.calls import Call, Run


def run_on_threads(run: Run, workers: int) -> None:
    """Run all calls on threads of this process."""
    from dask.callbacks import Callback
    from dask.threaded import get

    graph = run.pending()
    with Callback(posttask=lambda name, result, *_: run.finish(name, result)):
        get(graph, list(graph), num_workers=workers)


def run_on_processes(run: Run, workers: int) -> None:
    """Run all calls; if a worker is killed, run the unfinished calls again, one after another.

    A killed worker ends the whole pool, so any of the running calls may be the cause. A call that did not cause the
    crash finishes when it runs alone, and so does a call whose worker was killed from outside.

    Raises
    ------
    UserError
        A call killed its worker again, alone.
    """
    if workers == 1:
        for name, call in run.calls.items():
            run.finish(name, call())
        return
    while graph := run.pending():
        with _Pool(min(workers, len(graph))) as pool:
            suspects = _run_graph(run, graph, pool)
        for name in suspects:
            with _Pool(1) as pool:
                try:
                    run.finish(name, pool.submit(run.calls[name]).result())
                except BrokenProcessPool as error:
                    raise run.crash(name) from error


def _run_graph(run: Run, graph: dict[str, tuple[Call]], pool: _Pool) -> list[str]:
    """Run calls until all are finished or a worker is killed; return the calls that were running then."""
    pool.submit(int)  # starts the processes, which import their libraries while this one imports Dask
    from dask.callbacks import Callback
    from dask.multiprocessing import get

    started: set[str] = set()
    callback = Callback(
        pretask=lambda name, *_: started.add(name),
        posttask=lambda name, result, *_: run.finish(name, result),
    )
    try:
        with callback:
            get(graph, list(graph), pool=pool, chunksize=1, optimize_graph=False)
    except BrokenProcessPool:
        return sorted(started - run.results.keys())
    return []


class _Pool(ProcessPoolExecutor):
    """Fresh processes ("spawn"): a fork of a process whose libraries run threads can hang."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and stops the pool
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when the parent has died, e.g. by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)
