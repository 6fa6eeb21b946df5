"""Command-line arguments of the commands that run parts."""

from __future__ import annotations

import argparse
import os

from mrmfast.errors import UserError

LEAST_MEMORY, MOST_WORKERS = 64, 8  # MB per worker; more workers would wait for the disk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --memory, --workers and --scheduler of a command that runs on threads."""
    parser.add_argument(
        "--memory",
        metavar="MB",
        type=int,
        default=1024,
        help="working memory of all workers together in MB (default 1024)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help=f"number of threads (default: one per core, at most {MOST_WORKERS}, limited by --memory)",
    )
    add_scheduler_argument(parser, "each worker uses --memory / --workers")


def add_scheduler_argument(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Declare --scheduler."""
    parser.add_argument(
        "--scheduler",
        metavar="URL",
        help="run the parts on a Dask cluster (tcp://HOST:PORT); SRC and --out must have the same paths on all workers"
        f"{'; ' if note else ''}{note}",
    )


def check_arguments(arguments: argparse.Namespace) -> int:
    """Return the working memory of one worker in bytes; set the default number of workers.

    Raises
    ------
    UserError
        An option is out of range.
    """
    if arguments.workers is None:
        arguments.workers = max(1, min(len(os.sched_getaffinity(0)), MOST_WORKERS, arguments.memory // LEAST_MEMORY))
    if arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: must be an integer of at least 1")
    if arguments.memory < LEAST_MEMORY * arguments.workers:
        raise UserError(
            f"--memory {arguments.memory}: {arguments.workers} workers need at least {LEAST_MEMORY} MB each; "
            "give more memory or fewer --workers"
        )
    return (arguments.memory << 20) // arguments.workers
