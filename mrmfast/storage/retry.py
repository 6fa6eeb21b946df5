"""Retries of requests: after which failures, how long between attempts, and until when."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import tenacity
from obstore import exceptions
from tenacity.stop import stop_base

T = TypeVar("T")

MISMATCHES = 4  # attempts at wrong bytes: a proxy's fault passes, a wrong upload does not
BACKOFF = (0.1, 10.0)  # seconds: first and longest mean wait; random, so that ranks don't come back in step
FINAL = (
    FileNotFoundError,  # the client's NotFoundError
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.UnknownConfigurationKeyError,
)
PASSING = (408, 425, 429)  # besides 5xx: timeout, too early, slow down


class MismatchError(OSError):
    """A complete answer with the wrong length or the wrong SHA-256."""


def status(error: BaseException) -> int | None:
    """Return the HTTP status in an error of the client; it has no field for it."""
    match = re.search(r"non-2xx status code: (\d{3})", str(error))
    return int(match[1]) if match else None


def passing(error: BaseException) -> bool:
    """Tell whether a retry may help."""
    if isinstance(error, MismatchError):
        return True
    if not isinstance(error, exceptions.BaseError) or isinstance(error, FINAL):
        return False
    code = status(error)
    return code is None or code >= 500 or code in PASSING


class Patience:
    """Retries calls that failed for a passing reason, with exponential random waits (tenacity).

    Parameters
    ----------
    deadline : float
        Seconds without any progress after which the last error is raised.
    closing : Event
        Set: nothing is tried again, and waits end at once.
    retried : callable
        Called with the error before each wait.
    """

    def __init__(
        self, deadline: float, closing: threading.Event, retried: Callable[[BaseException | None], None]
    ) -> None:
        self.deadline, self.closing, self.retried = deadline, closing, retried
        self.last = 0.0

    def progress(self) -> None:
        """Restart the deadline, because bytes came."""
        self.last = time.monotonic()

    def extend(self, seconds: float) -> None:
        """Extend the deadline by the time spent waiting for a slot of this process."""
        self.last += seconds

    def call(self, function: Callable[[], T]) -> T:
        """Return what `function` returns after retries; from one thread at a time."""
        self.progress()
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(passing),
            wait=tenacity.wait_random_exponential(multiplier=BACKOFF[0], max=BACKOFF[1]),
            stop=tenacity.stop_any(tenacity.stop_when_event_set(self.closing), _Enough(self)),
            sleep=tenacity.sleep_using_event(self.closing),
            before_sleep=lambda state: self.retried(_error(state)),
            reraise=True,
        )(function)


class _Enough(stop_base):
    """No progress for a whole deadline, or wrong bytes too often."""

    def __init__(self, patience: Patience) -> None:
        self.patience, self.mismatches = patience, 0

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        self.mismatches += isinstance(_error(state), MismatchError)
        if self.mismatches >= MISMATCHES:
            return True
        return time.monotonic() - self.patience.last > self.patience.deadline


def _error(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
