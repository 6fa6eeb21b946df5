"""What an objective is: a module that turns one micro-batch into a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from mrmfast.models.image_encoder import ImageEncoder


@dataclass(frozen=True)
class Reconstruction:
    """Pictures for the run's figure.

    Attributes
    ----------
    original, predicted : Tensor, uint8, (B, 3, S, S)
    """

    original: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class RelationMaps:
    """Relations over the image for the run's figure.

    Attributes
    ----------
    original : Tensor, uint8, (B, 3, S, S)
    maps : dict
        Who relates -> (intact, masked), each (B, patches a side, patches a side): shares of a row of R and R^M.
    """

    original: Tensor
    maps: dict[str, tuple[Tensor, Tensor]]


@runtime_checkable
class Objective(Protocol):
    """The contract; ``tests/objectives/test_objectives.py`` holds every entry of OBJECTIVES to it."""

    image: ImageEncoder

    def __call__(
        self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss and its named parts (detached scalars)."""
        ...

    def reconstruct(self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor) -> Reconstruction:
        """Predict images, without gradients."""
        ...

    def relation_maps(self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor) -> RelationMaps | None:
        """Return relations over the image, without gradients; None where the objective masks none."""
        ...

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, and run them again there."""
        ...

    def without_decay(self) -> list[nn.Module]:
        """Modules whose parameters are trained without weight decay."""
        ...
