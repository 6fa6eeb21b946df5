"""What every loader of a comparison is asked to do. Standard library only: FFCV's interpreter reads it, too."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

BATCH, THREADS = 64, 2
ANGLE, FLIP = 20.0, 0.5  # degrees, probability
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Task:
    """JPEGs of a dataset to augmented batches.

    Attributes
    ----------
    dataset : Path
        Tars with an index each, as ``python -m preprocess`` writes them.
    work : Path
        The loader's own format and caches.
    tiles : int
        Images in the dataset.
    stored, size : int
        Side of the stored images and of the output, pixels.
    rotate : bool
        By an angle from -ANGLE to ANGLE, bilinear. All flip with probability FLIP.
    pixels : str
        ``float32``: normalised; ``uint8``: as they are.
    genetics : bool
        Join each image with its participant's features.
    """

    dataset: Path
    work: Path
    tiles: int
    stored: int
    size: int
    rotate: bool = True
    pixels: str = "float32"
    genetics: bool = False

    def arguments(self) -> list[str]:
        """Return the command line that :func:`parse` reads."""
        given = ["--dataset", str(self.dataset), "--work", str(self.work), "--tiles", str(self.tiles)]
        given += ["--stored", str(self.stored), "--size", str(self.size), "--pixels", self.pixels]
        return given + ["--rotate"] * self.rotate + ["--genetics"] * self.genetics


def parse(arguments: list[str]) -> Task:
    """Read a task from a command line."""
    parser = argparse.ArgumentParser()
    for name, kind in (
        ("dataset", Path),
        ("work", Path),
        ("tiles", int),
        ("stored", int),
        ("size", int),
        ("pixels", str),
    ):
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name in ("rotate", "genetics"):
        parser.add_argument(f"--{name}", action="store_true")
    return Task(**vars(parser.parse_args(arguments)))


class Peer(Protocol):
    """A loader, opened once."""

    def epoch(self) -> Iterable[Any]:
        """Give the batches of one epoch."""
        ...
