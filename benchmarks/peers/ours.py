"""This project's loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.peers.task import ANGLE, BATCH, FLIP, THREADS, Task
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.loader import Loader
from mrmfast.meters import Meters


def open_loader(task: Task, meters: Meters | None = None) -> Loader:
    """Open the loader as training does, on the CPU."""
    config = DataConfig(
        path=str(task.dataset),
        split="all",
        modalities=None if task.genetics else [],
        image_size=task.size,
        rotation=ANGLE if task.rotate else 0.0,
        flip=FLIP,
        backend="cpu",
        pixels="float32" if task.pixels == "float32" else "uint8",
        threads=THREADS,
        cache=str(task.work / "cache"),
    )
    where: dict[str, Any] = {"rank": 0, "world": 1, "device": torch.device("cpu"), "meters": meters}
    return Loader(open_dataset(config), config, seed=0, batch=BATCH, micro_batch=BATCH, **where)


class Ours:
    """Epoch after epoch of the stream."""

    def __init__(self, task: Task) -> None:
        self._loader, self._tiles, self._position = open_loader(task), task.tiles, 0

    def epoch(self) -> Iterable[Any]:
        """Give an epoch, started from nothing: no batch is ready when the clock starts."""
        start = self._position
        self._position += self._tiles
        return self._loader.batches(start, self._position)
