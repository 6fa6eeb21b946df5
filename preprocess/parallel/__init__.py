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
