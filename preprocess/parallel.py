"""Run the parts of a job with Dask: on threads or processes of this machine, or on a Dask cluster.

A part writes its own file aside and renames it, and a part whose file exists is not run again. The bytes of a part
depend on its task alone, so a job gives the same bytes for any number of workers, and after any number of kills and
reruns.

Threads serve code that releases the interpreter lock (NumPy, C kernels). Processes serve code that holds it, and code
that may crash on a damaged file: the part of a worker that was killed runs once more, alone, and only a second crash
ends the job.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import cloudpickle
from dask.callbacks import Callback
from tqdm import tqdm

from mrmfast.errors import UserError

LEAST_MEMORY, MOST_WORKERS = 64, 8  # MB a worker; more workers would wait for the disk
SMALL_JOB = 1 << 20  # bytes, pickled
Part = Callable[[Any, Any], Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --memory, --workers and --scheduler of a command that runs on threads."""
    parser.add_argument(
        "--memory", metavar="MB", type=int, default=1024, help="working memory of all workers together (default 1024)"
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help=f"threads of this process (default: one per core, at most {MOST_WORKERS} and as --memory allows)",
    )
    add_scheduler_argument(parser, "each takes --memory / --workers")


def add_scheduler_argument(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Declare --scheduler."""
    parser.add_argument(
        "--scheduler",
        metavar="URL",
        help="run the parts on a Dask cluster (tcp://HOST:PORT); its workers must see SRC and --out under the same "
        f"paths{', and ' if note else ''}{note}",
    )


def check_arguments(arguments: argparse.Namespace) -> int:
    """Return the working memory of one worker, bytes; set the number of workers if it was not given.

    Raises
    ------
    UserError
        An option is out of range.
    """
    if arguments.workers is None:
        arguments.workers = max(1, min(len(os.sched_getaffinity(0)), MOST_WORKERS, arguments.memory // LEAST_MEMORY))
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: give a whole number of at least 1")
    if arguments.memory < LEAST_MEMORY * arguments.workers:
        raise UserError(
            f"--memory {arguments.memory}: {arguments.workers} workers need at least {LEAST_MEMORY} MB each; "
            "give more memory or fewer --workers"
        )
    return (arguments.memory << 20) // arguments.workers


def run_parts(
    part: Part,
    job: Any,
    tasks: list[Any],
    sizes: list[int],
    arguments: argparse.Namespace,
    label: str,
    unit: str,
    *,
    processes: bool = False,
    done: int = 0,
    describe: Callable[[Any], str] = lambda task: "working on one part",
) -> list[Any]:
    """Call ``part(job, task)`` for every task, in any order, with a progress bar.

    Parameters
    ----------
    part : callable
        At module level.
    job : object
        What all parts share; sent to each worker of a cluster once.
    tasks : list
    sizes : list of int
        How far each task moves the bar.
    arguments : Namespace
        With ``workers`` (1: in this process) and ``scheduler`` (None: this machine).
    label, unit : str
        Of the bar.
    processes : bool
        Run on processes of this machine, not on threads.
    done : int
        Where the bar starts: the size of parts that an earlier run finished.
    describe : callable
        What a worker was doing with a task when it was killed, for the message.

    Returns
    -------
    list
        What the parts returned, in the order of `tasks`.

    Raises
    ------
    UserError
        A part's own error, a part that kills its worker each time, or a cluster that does not answer.
    """
    names = [f"part-{number}" for number in range(len(tasks))]
    calls = {name: _Call(part, job, task) for name, task in zip(names, tasks, strict=True)}
    size_of = dict(zip(names, sizes, strict=True))
    with tqdm(total=done + sum(sizes), initial=done, desc=label, unit=unit, disable=None) as bar:
        run = _Run(label, calls, lambda name: bar.update(size_of[name]), describe)
        if not tasks:
            return []
        if arguments.scheduler:
            _run_on_cluster(run, arguments.scheduler)
        elif processes:
            _run_on_processes(run, arguments.workers)
        else:
            _run_on_threads(run, arguments.workers)
    return [run.results[name] for name in names]


@dataclass(frozen=True)
class _Call:
    """One part as a function without arguments: Dask would look for keys of its graph inside those of a task.

    Returns an error of the user or of the disk as a value: Dask would wrap it in an exception of its own, whose text
    is a traceback.
    """

    part: Part
    job: Any
    task: Any

    def __call__(self) -> Any:
        try:
            return self.part(self.job, self.task)
        except (UserError, OSError) as error:
            return _Failure(error)


@dataclass(frozen=True)
class _Failure:
    error: Exception


class _Run:
    """The calls of a job and the results so far."""

    def __init__(
        self,
        label: str,
        calls: dict[str, _Call],
        progress: Callable[[str], object],
        describe: Callable[[Any], str],
    ) -> None:
        self.calls, self._label, self._progress, self._describe = calls, label, progress, describe
        self.results: dict[str, Any] = {}

    def finish(self, name: str, result: Any) -> None:
        """Keep the result of a call; raise the error that it returned."""
        if isinstance(result, _Failure):
            raise result.error
        self.results[name] = result
        self._progress(name)

    def pending(self) -> dict[str, tuple[_Call]]:
        """Return the Dask graph of the calls without a result."""
        return {name: (call,) for name, call in self.calls.items() if name not in self.results}

    def crash(self, name: str) -> UserError:
        """Return the error of a call that killed its worker each time."""
        task = self._describe(self.calls[name].task)
        return UserError(
            f"{self._label}: {task} killed its worker process each time; move a damaged file away, "
            "or take fewer --workers where memory is short, and run the same command again: it resumes"
        )


def _run_on_threads(run: _Run, workers: int) -> None:
    from dask.threaded import get

    graph = run.pending()
    with Callback(posttask=lambda name, result, *_: run.finish(name, result)):
        get(graph, list(graph), num_workers=workers)


def _run_on_processes(run: _Run, workers: int) -> None:
    """Run all calls; after a worker was killed, run the calls that were under way again, one after another.

    A killed worker takes the whole pool with it, so any of these calls may be to blame. Alone, a call that merely ran
    beside the crash finishes, and so does one whose worker was killed from outside.
    """
    from dask.multiprocessing import get

    if workers == 1:
        for name, call in run.calls.items():
            run.finish(name, call())
    while graph := run.pending():
        started: set[str] = set()
        callback = Callback(
            pretask=lambda name, *_, started=started: started.add(name),
            posttask=lambda name, result, *_: run.finish(name, result),
        )
        with _Pool(min(workers, len(graph))) as pool:
            try:
                with callback:
                    get(graph, list(graph), pool=pool, chunksize=1, optimize_graph=False)
            except BrokenProcessPool:
                suspects = sorted(started - run.results.keys())
            else:
                suspects = []
        for name in suspects:
            with _Pool(1) as pool:
                try:
                    run.finish(name, pool.submit(run.calls[name]).result())
                except BrokenProcessPool as error:
                    raise run.crash(name) from error


class _Pool(ProcessPoolExecutor):
    """Fresh processes ("spawn"): a fork of a process whose libraries run threads can hang."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops the pool in one line
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when the parent is gone: after a SIGKILL nobody else would."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)


def _run_on_cluster(run: _Run, scheduler: str) -> None:
    from distributed import Client, as_completed  # a second to import, and only clusters need it
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    try:
        client = Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {scheduler}: no Dask scheduler answers there; start one with dask scheduler"
        ) from error
    with client:
        shared = _share(client, next(iter(run.calls.values())).job)
        futures = {
            client.submit(_call_on_cluster, call.part, shared, call.task, pure=False): name
            for name, call in run.calls.items()
        }
        for future in as_completed(futures):
            try:
                run.finish(futures[future], future.result())
            except KilledWorker as error:  # Dask ran it on several workers, and each one died
                raise run.crash(futures[future]) from error
            except FutureCancelledError as error:
                raise UserError(
                    f"--scheduler {scheduler}: the cluster lost its workers or its scheduler; start them again, then "
                    "run the same command again: it resumes"
                ) from error


def _share(client: Any, job: Any) -> Any:
    """Return a job to submit with each call: a large one as a reference to one copy per worker.

    A small one goes with each call, because the copies are gone when all workers die at once.
    """
    small = len(cloudpickle.dumps(job)) < SMALL_JOB
    return job if small else client.scatter(job, broadcast=True, hash=False)


def _call_on_cluster(part: Part, job: Any, task: Any) -> Any:
    return _Call(part, job, task)()
