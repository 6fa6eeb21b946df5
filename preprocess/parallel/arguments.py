"""What the commands that run parts have in common on the command line."""

from __future__ import annotations

import argparse
import os

from mrmfast.errors import UserError

LEAST_MEMORY, MOST_WORKERS = 64, 8  # MB a worker; more workers would wait for the disk


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
