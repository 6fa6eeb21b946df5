"""Run the parts of a job: threads of this process, or a Dask cluster.

A part writes its own file aside and renames it; one that exists is never done twice. What a part writes depends on its
number alone, so the bytes are the same for any number of workers, and after any number of kills and reruns.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from dask.callbacks import Callback
from dask.threaded import get
from tqdm import tqdm

from mrmfast.errors import UserError

LEAST_MEMORY, MOST_WORKERS = 64, 8  # MB a worker; more would wait for the disk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --memory, --workers and --scheduler."""
    parser.add_argument(
        "--memory", metavar="MB", type=int, default=1024, help="working memory of all workers together (default 1024)"
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help=f"threads of this process (default: one a core, up to {MOST_WORKERS} and as --memory allows)",
    )
    parser.add_argument(
        "--scheduler",
        metavar="URL",
        help="join a Dask cluster (tcp://HOST:PORT) instead; its workers must see SRC and --out under the same paths, "
        "and each takes --memory / --workers",
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
    part: Callable[[Any, Any], None],
    job: Any,
    tasks: list[Any],
    sizes: list[int],
    arguments: argparse.Namespace,
    label: str,
    unit: str,
) -> None:
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
        With ``workers`` and ``scheduler``.
    label, unit : str
        Of the bar.

    Raises
    ------
    UserError
        A part's own, or the cluster cannot be reached.
    """
    with tqdm(total=sum(sizes), desc=label, unit=unit, disable=None) as bar:
        if not tasks:
            return
        if arguments.scheduler:
            _on_cluster(part, job, tasks, sizes, arguments.scheduler, bar)
            return
        names = [f"part-{number}" for number in range(len(tasks))]
        size_of = dict(zip(names, sizes, strict=True))
        # Functions without arguments: Dask would look for keys of the graph inside those of a task.
        graph = {name: (_Call(part, job, task),) for name, task in zip(names, tasks, strict=True)}

        def count(key: str, *_: object) -> None:
            bar.update(size_of.get(key, 0))

        with Callback(posttask=count):
            get(graph, names, num_workers=arguments.workers)


class _Call:
    """One part as a function without arguments."""

    def __init__(self, part: Callable[[Any, Any], None], job: Any, task: Any) -> None:
        self.part, self.job, self.task = part, job, task

    def __call__(self) -> None:
        self.part(self.job, self.task)


def _on_cluster(
    part: Callable[[Any, Any], None], job: Any, tasks: list[Any], sizes: list[int], scheduler: str, bar: tqdm
) -> None:
    from distributed import Client, as_completed  # a second to import, and only clusters need it

    try:
        client = Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {scheduler}: no Dask scheduler answers there; start one with dask scheduler"
        ) from (error)
    with client:
        shared = client.scatter(job, broadcast=True, hash=False)
        futures = [client.submit(part, shared, task, pure=False) for task in tasks]
        size_of = dict(zip([future.key for future in futures], sizes, strict=True))
        for future in as_completed(futures):
            future.result()
            bar.update(size_of[future.key])
