"""Worker processes for the parts of a preprocessing job, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2
from tqdm import tqdm

from mrmfast.errors import UserError


def in_parallel(
    function: Callable[[Any], Any], tasks: list[Any], workers: int, sizes: list[int], total: int, label: str
) -> list[Any]:
    """Apply a function to tasks in worker processes, with a progress bar.

    Parameters
    ----------
    function : callable
        At module level; one task in, its result out.
    tasks : list
    workers : int
        1: in this process.
    sizes : list of int
        How far each task moves the bar.
    total : int
        Length of the bar; what `sizes` does not add up to is done already.
    label : str

    Returns
    -------
    list
        Results in the order of `tasks`.

    Raises
    ------
    UserError
        A worker was killed, which is what running out of memory looks like.
    """
    with tqdm(total=total, initial=total - sum(sizes), desc=label) as bar:
        if workers == 1 or len(tasks) < 2:
            results = []
            for task, size in zip(tasks, sizes, strict=True):
                results.append(function(task))
                bar.update(size)
            return results
        pool = ProcessPoolExecutor(
            min(workers, len(tasks)), multiprocessing.get_context("spawn"), initializer=_start_worker
        )
        try:
            futures = {pool.submit(function, task): size for task, size in zip(tasks, sizes, strict=True)}
            for future in as_completed(futures):
                future.result()
                bar.update(futures[future])
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, probably for lack of memory; run the same command again with fewer "
                "--workers, it continues where it stopped"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops the pool in one line
    cv2.setNumThreads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when the parent is gone: after a SIGKILL nobody else would."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)
