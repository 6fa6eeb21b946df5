"""Run the parts of a job with Dask: on threads or processes of this machine, or on a Dask cluster.

A part writes its file under a temporary name and renames it. A part whose file exists is not run again. The bytes of a
part depend only on its task: a job gives the same bytes for any number of workers, and after any number of kills and
reruns.

Threads are for code that releases the interpreter lock (NumPy, C kernels). Processes are for code that holds the lock,
and for code that may crash on a damaged file. The part of a killed worker runs once more, alone; only a second crash
ends the job.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from preprocess.parallel import cluster, local
from preprocess.parallel.arguments import add_arguments, add_scheduler_argument, check_arguments
from preprocess.parallel.calls import Call, Part, Run

__all__ = ["add_arguments", "add_scheduler_argument", "check_arguments", "run_parts"]


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
        A function at module level.
    job : object
        The input that all parts share; sent once to each worker of a cluster.
    tasks : list
    sizes : list of int
        Progress of each task.
    arguments : Namespace
        With ``workers`` (1: in this process) and ``scheduler`` (None: this machine).
    label, unit : str
        Label and unit of the progress bar.
    processes : bool
        Run on processes of this machine, not on threads.
    done : int
        Start of the progress bar: the size of parts that an earlier run finished.
    describe : callable
        Returns a description of a task for the error message of a killed worker.

    Returns
    -------
    list
        Results of the parts, in the order of `tasks`.

    Raises
    ------
    UserError
        A part raised an error, a part kills its worker each time, or the cluster does not answer.
    """
    names = [f"part-{number}" for number in range(len(tasks))]
    calls = {name: Call(part, job, task) for name, task in zip(names, tasks, strict=True)}
    size_of = dict(zip(names, sizes, strict=True))
    with tqdm(total=done + sum(sizes), initial=done, desc=label, unit=unit, disable=None) as bar:
        run = Run(label, calls, lambda name: bar.update(size_of[name]), describe)
        if not tasks:
            return []
        if arguments.scheduler:
            cluster.run_on_cluster(run, arguments.scheduler)
        elif processes:
            local.run_on_processes(run, arguments.workers)
        else:
            local.run_on_threads(run, arguments.workers)
    return [run.results[name] for name in names]
