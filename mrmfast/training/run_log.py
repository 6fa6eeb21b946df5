"""The folder of a run: config, metrics, sample log, TensorBoard, figures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch.utils.tensorboard import SummaryWriter

from mrmfast.atomic import write_aside
from mrmfast.config import PositiveInt
from mrmfast.errors import PARSE_ERRORS, UserError


@dataclass(frozen=True)
class RunConfig:
    """Where a run leaves its traces.

    Attributes
    ----------
    name : str
        The run's folder is ``dir/name``.
    dir : str
        Folder that holds the runs.
    checkpoint_every : int
        Optimiser steps.
    keep : int
        How many checkpoints stay.
    log_samples : bool
        Write the sample keys of every step to ``samples.jsonl``.
    """

    name: str = "mrm"
    dir: str = "runs"
    checkpoint_every: PositiveInt = 1000
    keep: PositiveInt = 2
    log_samples: bool = False

    def __post_init__(self) -> None:
        if self.name in ("", "..") or Path(self.name).name != self.name:
            raise UserError(f"name={self.name}: must be a plain name; the folder around it is run.dir")

    @property
    def folder(self) -> Path:
        """``dir/name``."""
        return Path(self.dir) / self.name


class JSONLines:
    """A log with one JSON object per line, each with its ``step``.

    Damaged lines of an earlier process are removed with a warning: nothing is computed from a log. The damaged file is
    kept as ``NAME.damaged``.

    Parameters
    ----------
    path : Path
    step : int
        Lines of later steps are dropped: they belong to work that a resumed run does again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.exists():
            entries, damaged = parse_lines(path.read_bytes())
            if damaged:
                kept = path.with_name(f"{path.name}.damaged")
                path.replace(kept)
                print(
                    f"mrmfast: warning: {path}: {len(damaged)} damaged lines are removed, the first is line "
                    f"{damaged[0]}; the damaged file is kept as {kept}",
                    file=sys.stderr,
                )
            with write_aside(path) as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries if entry["step"] <= step)
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def write(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append lines and hand them to the operating system."""
        self._file.writelines(json.dumps(entry) + "\n" for entry in entries)
        self._file.flush()

    def close(self) -> None:
        """Flush to disk and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def parse_lines(text: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """Parse a JSON-lines log.

    Returns
    -------
    list of dict
        The entries with a ``step``.
    list of int
        Numbers of the lines that are no such entry. A last line without its end is none of them: a kill cuts it short.
    """
    entries, damaged = [], []
    *lines, rest = text.split(b"\n")
    for number, line in enumerate(lines, 1):
        entry = _entry(line)
        if entry is None:
            damaged.append(number)
        else:
            entries.append(entry)
    last = _entry(rest)
    return (entries if last is None else [*entries, last]), damaged


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        return entry if type(entry["step"]) is int else None
    except PARSE_ERRORS:
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a JSON-lines log, none where there is no log; damaged lines are skipped."""
    return parse_lines(path.read_bytes())[0] if path.exists() else []


class RunLog:
    """Metrics, sample keys and TensorBoard of a run; on rank 0 only.

    Parameters
    ----------
    config : RunConfig
    step : int
        Where the run starts or resumes.
    """

    def __init__(self, config: RunConfig, step: int) -> None:
        self.folder = config.folder
        self.metrics = JSONLines(self.folder / "metrics.jsonl", step)
        self.samples = JSONLines(self.folder / "samples.jsonl", step) if config.log_samples else None
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def log(self, entry: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        """Write one step."""
        self.metrics.write([entry])
        if self.samples is not None:
            self.samples.write(samples)
        for name, value in entry.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        """Flush and close everything."""
        self.metrics.close()
        if self.samples is not None:
            self.samples.close()
        self._board.close()
