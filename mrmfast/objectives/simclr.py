"""SimCLR (Chen, Kornblith, Norouzi, Hinton; ICML 2020): two views of an image find each other among all others.

See ``docs/methods/simclr.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from pydantic import AllowInfNan
from torch import Tensor

from mrmfast.batch import Batch, ViewSpec
from mrmfast.models.config import Layers, Width
from mrmfast.models.export import ExportRecipe
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.heads import ProjectionHead
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.models.patch_embed import denormalise, normalise
from mrmfast.objectives.augment import AugmentConfig
from mrmfast.objectives.base import LossOutput, Mode, Objective, StepInfo
from mrmfast.objectives.collectives import all_gather, rank
from mrmfast.objectives.losses import nt_xent


@dataclass(frozen=True)
class HeadConfig:
    """Projection head.

    Attributes
    ----------
    layers : int
        2 is the paper's, 3 SimCLR v2's and the published code's default.
    hidden : int, optional
        Width between the layers; the encoder's by default.
    width : int
        Of the vectors that are compared.
    """

    layers: Layers = 3
    hidden: Width | None = None
    width: Width = 128


@dataclass(frozen=True)
class SimCLRConfig:
    """Settings of SimCLR.

    Attributes
    ----------
    mode : {"same_settings", "official"}
        official: pixels in 0..1, without a mean and a standard deviation, as published.
    temperature : float
        Divides the cosine similarities in the loss.
    head : HeadConfig
    augment : AugmentConfig
    """

    name: Literal["simclr"] = "simclr"
    mode: Mode = "same_settings"
    temperature: Annotated[float, AllowInfNan(False), Ge(1e-4), Le(1e4)] = 0.1
    head: HeadConfig = field(default_factory=HeadConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


class SimCLR(Objective):
    """Encoder, projection head, NT-Xent over the samples of all ranks."""

    Config = SimCLRConfig
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        hidden = config.head.hidden or encoder.width
        widths = [encoder.width, *[hidden] * (config.head.layers - 1), config.head.width]
        self.head = ProjectionHead(widths, last_scale=True)

    @classmethod
    def views(cls, config: SimCLRConfig) -> tuple[ViewSpec, ...]:
        """Two views of one recipe."""
        return (config.augment.view(),) * 2

    @classmethod
    def min_samples_per_pass(cls, config: Any) -> int:
        """A sample needs another one that it is not."""
        return 2

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Encode both views, and compare them with those of all ranks."""
        samples = len(batch.views[0])
        images = torch.cat(batch.views[:2])
        if self.config.mode == "official":
            images = denormalise(normalise(images)).float() / 255
        features = self.encoder(images)[:, 0]  # (2 B, D): the class token
        features = all_gather(torch.stack(features.chunk(2), 1))  # (ranks * B, 2, D)
        own = slice(rank() * samples, (rank() + 1) * samples)
        loss = self.contrast(features.transpose(0, 1).flatten(0, 1), own)
        return LossOutput(loss, {"contrast": loss.detach()})

    def export_recipe(self) -> ExportRecipe:
        """Return the encoder's recipe, with the pixels that it takes."""
        recipe = super().export_recipe()
        return replace(recipe, mean=(0.0,) * 3, std=(1.0,) * 3) if self.config.mode == "official" else recipe

    def contrast(self, features: Tensor, own: slice | None = None) -> Tensor:
        """Project features and compare the views.

        Parameters
        ----------
        features : Tensor, (2 N, D)
            View 1 of all samples, then view 2. Every rank projects those of all ranks, so that BatchNorm sees them all.
        own : slice, optional
            This rank's samples, whose terms are averaged; all by default.
        """
        first, second = self.head(features).chunk(2)  # each (N, width)
        dtype = torch.promote_types(first.dtype, torch.float32)
        return nt_xent(first.to(dtype), second.to(dtype), self.config.temperature, own)
