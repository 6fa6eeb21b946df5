"""What every command shares: exit statuses, errors of the user in one line, and how a command's module is found.

A command is a module with ``add_arguments(parser)`` and ``run(arguments)``. It is imported when it is used, so that one
command does not need the libraries of another.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from mrmfast.errors import UserError, os_error_message

# Exit statuses of all commands (docs/reference/cli.md).
DONE = 0
DAMAGED = 1
USER_ERROR = 2
SKIPPED = 3
INTERRUPTED = 130

EXIT_STATUSES = {
    DONE: "The command is done.",
    DAMAGED: "`check` found damage. A defect of mrmfast also ends with 1, and prints a traceback.",
    USER_ERROR: "An error in the arguments, the config, the data or the machine; one line names it and the remedy.",
    SKIPPED: "The dataset is written, but some files could not be read and were skipped (`--accept-unreadable`: 0).",
    INTERRUPTED: "Interrupted by Ctrl-C or SIGTERM. The same command continues (`train`: with `--resume`).",
}


class Entry(NamedTuple):
    """A line of a table of commands.

    Attributes
    ----------
    target : str
        ``package.module``, a module with ``add_arguments`` and ``run``; or ``package.module:name``, a click command.
    summary : str
        One line for the list of commands.
    examples : tuple of str
        Command lines; ``{program}`` stands for how the command is reached.
    """

    target: str
    summary: str
    examples: tuple[str, ...] = ()


class ArgumentParser(argparse.ArgumentParser):
    """argparse, whose errors are one line with a remedy, as all errors of the user are."""

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def load(target: str) -> Any:
    """Import ``package.module`` or the ``name`` of ``package.module:name``.

    Raises
    ------
    UserError
        A library of the command is not installed.
    """
    module, _, name = target.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("mrmfast", "preprocess"):
            raise  # a defect, no missing library
        raise UserError(f"{error}; install the tools with pip install 'mrmfast[preprocess]'") from error
    return getattr(loaded, name) if name else loaded


def run_command(call: Callable[[], int | None], out: Callable[[], Any] = lambda: None) -> int:
    """Run a command and return its exit status; print an error of the user as one line.

    Parameters
    ----------
    call : callable
        Returns the exit status; None is 0.
    out : callable
        Returns where the command writes, for an error of the machine that names no file.
    """
    try:
        return call() or DONE
    except UserError as error:
        message = str(error)
    except (OSError, ImportError) as error:
        described = os_error_message(_cause(error), out())
        if described is None:
            raise
        message = described
    except KeyboardInterrupt:
        print("mrmfast: interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    print(f"mrmfast: error: {message}", file=sys.stderr)
    return USER_ERROR


def _cause(error: BaseException) -> OSError:
    """Return the error of the machine behind an import that failed: a library that cannot be opened."""
    while not isinstance(error, OSError) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error if isinstance(error, OSError) else OSError()
