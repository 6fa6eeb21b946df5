"""The contract of a task. No task is here yet; what trains an objective trains a task too."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from mrmfast.batch import LabelKind, LabelSpec
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.base import TrainableModule


class Task(TrainableModule):
    """An encoder with a head that predicts labels.

    Parameters
    ----------
    config : dataclass
        An instance of ``Config``.
    encoder : ImageEncoder
        Pre-trained.
    labels : LabelSpec

    Attributes
    ----------
    target_kind : {"class", "multi_hot", "values", "mask"}
        What ``batch.target`` holds.
    primary_metric : str
        The key of :meth:`metrics` that checkpoints are compared by.
    """

    target_kind: ClassVar[LabelKind]
    primary_metric: ClassVar[str]

    def __init__(self, config: Any, encoder: ImageEncoder, labels: LabelSpec) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.labels = labels

    def predict(self, image_BCHW: Tensor) -> Tensor:
        """Predict labels of images, (B, 3, S, S), in the shape of ``batch.target``."""
        raise NotImplementedError

    def metrics(self, predicted: Tensor, target: Tensor) -> dict[str, float]:
        """Compare predictions with labels over a whole split."""
        raise NotImplementedError
