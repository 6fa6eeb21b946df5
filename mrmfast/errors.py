"""Errors that a user can fix.

The commands (``mrmfast/train.py``, ``python -m preprocess``) print a :class:`UserError` as one line and exit with
status 2. Anything else is a defect of ours and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in the input or the machine's state: names the file or field, and the remedy, in one line."""


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
