"""The folder of a run: config, metrics, sample log, TensorBoard, figures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch.utils.tensorboard import SummaryWriter

from mrmfast.atomic import write_aside
from mrmfast.config import PositiveInt
from mrmfast.errors import UserError


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

    Parameters
    ----------
    path : Path
    step : int
        Lines of later steps are dropped: they belong to work that a resumed run does again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.exists():
            lines = [line for line in read_lines(path) if line["step"] <= step]
            with write_aside(path) as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines log; a last line cut short by a kill is skipped."""
    entries = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines):
                raise
    return entries


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
