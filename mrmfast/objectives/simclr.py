"""SimCLR (Chen, Kornblith, Norouzi, Hinton; ICML 2020): two views of an image find each other among all others.

See ``docs/methods/simclr.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from pydantic import AllowInfNan
from torch import Tensor, nn

from mrmfast.batch import Batch, Photometric, ViewSpec
from mrmfast.config import Share
from mrmfast.models.config import Layers, Width
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.base import LossOutput, Objective, StepInfo
from mrmfast.objectives.collectives import all_gather, rank
from mrmfast.objectives.losses import nt_xent

CropShare = Annotated[float, AllowInfNan(False), Gt(0), Le(1)]


@dataclass(frozen=True)
class AugmentConfig:
    """How the two views differ, beside rotation and flip of the ``data`` section.

    Attributes
    ----------
    crop : (float, float)
        Range of the crop's share of the image's area.
    brightness, contrast, saturation, hue : float
        Strengths of the colour jitter.
    jitter, grey, blur : float
        Probabilities.
    """

    crop: tuple[CropShare, CropShare] = (0.08, 1.0)
    brightness: Share = 0.8
    contrast: Share = 0.8
    saturation: Share = 0.8
    hue: Annotated[Share, Le(0.5)] = 0.2
    jitter: Share = 0.8
    grey: Share = 0.2
    blur: Share = 0.5

    def view(self) -> ViewSpec:
        """Return the recipe of a view."""
        colour = Photometric(
            self.brightness,
            self.contrast,
            self.saturation,
            self.hue,
            jitter=self.jitter,
            grey=self.grey,
            blur=self.blur,
        )
        return ViewSpec(crop=self.crop, photometric=colour)


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
    temperature : float
        Divides the cosine similarities in the loss.
    head : HeadConfig
    augment : AugmentConfig
    """

    name: Literal["simclr"] = "simclr"
    temperature: Annotated[float, AllowInfNan(False), Ge(1e-4), Le(1e4)] = 0.1
    head: HeadConfig = field(default_factory=HeadConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


class ProjectionHead(nn.Sequential):
    """Linear and BatchNorm per layer, ReLU between: google-research/simclr's head.

    No Linear has a bias, and the last BatchNorm has no shift. Statistics are always those of the batch, so there are no
    running ones.
    """

    def __init__(self, width: int, config: HeadConfig) -> None:
        hidden = config.hidden or width
        widths = [width, *[hidden] * (config.layers - 1), config.width]
        layers: list[nn.Module] = []
        for number in range(config.layers):
            norm = nn.BatchNorm1d(widths[number + 1], track_running_stats=False)
            layers += [nn.Linear(widths[number], widths[number + 1], bias=False), norm, nn.ReLU()]
        norm.register_parameter("bias", None)
        super().__init__(*layers[:-1])


class SimCLR(Objective):
    """Encoder, projection head, NT-Xent over the samples of all ranks."""

    Config = SimCLRConfig
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        self.head = ProjectionHead(encoder.width, config.head)

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
        features = self.encoder(torch.cat(batch.views[:2]))[:, 0]  # (2 B, D): the class token
        features = all_gather(torch.stack(features.chunk(2), 1))  # (ranks * B, 2, D)
        own = slice(rank() * samples, (rank() + 1) * samples)
        loss = self.contrast(features.transpose(0, 1).flatten(0, 1), own)
        return LossOutput(loss, {"contrast": loss.detach()})

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
