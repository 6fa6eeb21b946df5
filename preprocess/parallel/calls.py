"""The calls of a job, and the results so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mrmfast.errors import UserError

Part = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Call:
    """One part as a function without arguments; Dask would search arguments for keys of its graph.

    A user error or a disk error is returned as a value, because Dask would wrap the error in an exception whose text is
    a traceback.
    """

    part: Part
    job: Any
    task: Any

    def __call__(self) -> Any:
        """Run the part; return its result, or its error as a :class:`Failure`."""
        try:
            return self.part(self.job, self.task)
        except (UserError, OSError) as error:
            return Failure(error)


@dataclass(frozen=True)
class Failure:
    """An error that a part raised."""

    error: Exception


class Run:
    """The calls of a job and the results so far."""

    def __init__(
        self,
        label: str,
        calls: dict[str, Call],
        progress: Callable[[str], object],
        describe: Callable[[Any], str],
    ) -> None:
        self.calls, self._label, self._progress, self._describe = calls, label, progress, describe
        self.results: dict[str, Any] = {}

    def finish(self, name: str, result: Any) -> None:
        """Keep the result of a call; raise the error that it returned."""
        if isinstance(result, Failure):
            raise result.error
        self.results[name] = result
        self._progress(name)

    def pending(self) -> dict[str, tuple[Call]]:
        """Return the Dask graph of the calls without a result."""
        return {name: (call,) for name, call in self.calls.items() if name not in self.results}

    def crash(self, name: str) -> UserError:
        """Return the error of a call that killed its worker each time."""
        task = self._describe(self.calls[name].task)
        return UserError(
            f"{self._label}: {task} killed its worker process each time; move a damaged file away, "
            "or use fewer --workers if memory is short, and rerun the same command, which resumes"
        )
