"""The contract of an evaluation: a frozen encoder and a dataset in, named scores out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mrmfast.data.dataset import DataConfig


@dataclass(frozen=True)
class Scores:
    """What an evaluation measures on held-out participants.

    Attributes
    ----------
    metric : str
        What the values are, e.g. ``R2``; higher is better.
    values : dict of str to float
        ``mean`` first, by which encoders are compared; then a value per label.
    counts : dict of str to int
        How many images and participants were fitted on and judged.
    """

    metric: str
    values: dict[str, float]
    counts: dict[str, int]


class Evaluation:
    """One evaluation. To add one, write :meth:`evaluate` and a line in ``mrmfast/evaluation/__init__.py``.

    Parameters
    ----------
    config : dataclass
        An instance of ``Config``.
    """

    Config: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        self.config = config

    def evaluate(self, encoder: Path, data: DataConfig) -> Scores:
        """Evaluate an exported encoder.

        Parameters
        ----------
        encoder : Path
            ``encoder.safetensors`` of a run.
        data : DataConfig
            The dataset, as in pre-training; the evaluation chooses split, labels and augmentation.
        """
        raise NotImplementedError
