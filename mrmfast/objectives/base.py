"""What an objective is: a module that turns one micro-batch into a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from mrmfast.models.vit import ImageEncoder


@dataclass(frozen=True)
class Reconstruction:
    """Pictures for the run's figure.

    Attributes
    ----------
    original, predicted : Tensor, uint8, (B, 3, S, S)
    """

    original: Tensor
    predicted: Tensor


@runtime_checkable
class Objective(Protocol):
    """The contract; ``tests/test_objectives.py`` holds every entry of OBJECTIVES to it."""

    image: ImageEncoder

    def __call__(
        self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss and its named parts (detached scalars)."""
        ...

    def reconstruct(self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor) -> Reconstruction:
        """Predict images, without gradients."""
        ...

    def without_decay(self) -> list[nn.Module]:
        """Modules whose parameters are trained without weight decay."""
        ...
