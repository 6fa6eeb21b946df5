"""Errors that a user can fix.

The commands (``mrmfast/train.py``, ``python -m preprocess``) print a :class:`UserError` as one line and exit with
status 2. Anything else is a defect of ours and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in the input or the machine's state: names the file or field, and the remedy, in one line."""


class SharedError(UserError):
    """A :class:`UserError` that every rank meets at the same moment, so that one of them is enough to tell it."""


class ClosedError(RuntimeError):
    """A source was closed while bytes were under way: the end of a run, no error of the user."""
