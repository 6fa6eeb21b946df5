"""Errors that a user can fix.

The commands (``mrmfast/train.py``, ``python -m preprocess``) print a :class:`UserError` as one line and exit with
status 2. Anything else is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import os

from mrmfast.redact import redact


class UserError(ValueError):
    """A mistake in the input or the machine's state: names the file or field, and the remedy, in one line.

    Credentials in URLs are removed from the message (:func:`mrmfast.redact.redact`), and what would end the line is
    escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(redact(str(message))))


class SharedError(UserError):
    """A :class:`UserError` that every rank raises at the same point, so that one rank prints it."""


class MissingError(UserError):
    """A file or object does not exist."""


class ClosedError(RuntimeError):
    """A source was closed during a transfer: the end of a run, not an error of the user."""


# What parsers of other libraries raise on damaged or hostile input; RuntimeError includes RecursionError.
PARSE_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    EOFError,
    MemoryError,
    FileNotFoundError,
)


# Errors of the machine -> remedy. Other numbers of an OSError without a file are defects of ours.
_SPACE = "no space left on device; free space"
_RIGHTS = "check the path and its permissions"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: "the quota is used up; free space",
    errno.EROFS: f"read-only file system; {_RIGHTS}",
    errno.EACCES: f"permission denied; {_RIGHTS}",
    errno.EPERM: f"operation not permitted; {_RIGHTS}",
    errno.EMFILE: "too many open files; raise the limit, e.g. ulimit -n 4096",
    errno.ENFILE: "too many open files on this machine; end other programs",
    errno.EIO: "input/output error; check the disk or the network mount",
    errno.ESTALE: "stale file handle; mount the file system again",
    errno.ENOMEM: "out of memory; end other programs, or use a machine with more",
}


def os_error_message(error: OSError, where: object = None) -> str | None:
    """Say an error of the operating system in one line; None if it is no error that a user can fix.

    Parameters
    ----------
    error : OSError
    where : object, optional
        What was written, for an error that names no file.
    """
    named = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else None
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        if named is None:
            return None
        remedy = f"{(error.strerror or 'cannot be used').lower()}; {_RIGHTS}"
    subject = named or where
    return one_line(redact(f"{subject}: {remedy}" if subject else remedy))


def one_line(text: str) -> str:
    """Return `text` with every character escaped that would end the line or steer a terminal."""
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
