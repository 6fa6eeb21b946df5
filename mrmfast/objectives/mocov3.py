"""MoCo v3 (Chen, Xie, He; ICCV 2021): a view's query finds the other view's key among those of all samples.

Keys come from a moving average of encoder and projector. See ``docs/methods/mocov3.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from pydantic import AllowInfNan
from torch import Tensor, nn

from mrmfast.batch import Batch, ViewSpec
from mrmfast.config import PositiveInt, Share
from mrmfast.models.ema import EMA, rising_momentum
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.heads import ProjectionHead
from mrmfast.models.image_encoder import EncoderDesign, ImageEncoder
from mrmfast.objectives.augment import AugmentConfig
from mrmfast.objectives.base import LossOutput, Mode, Objective, StepInfo
from mrmfast.objectives.collectives import all_gather, rank
from mrmfast.objectives.losses import info_nce


def _view(blur: float, solarise: float) -> AugmentConfig:
    return AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=blur, solarise=solarise)


@dataclass(frozen=True)
class MoCoV3Config:
    """Settings of MoCo v3.

    Attributes
    ----------
    mode : {"same_settings", "official"}
        official: fixed positions, a frozen patch embedding, and weight decay of all parameters, as published.
    temperature : float
        Divides the cosine similarities in the loss.
    momentum : float
        Of the moving average at the first step; it rises to 1 on half a cosine.
    hidden, width : int
        Of projector and predictor: between the layers, and of the vectors that are compared.
    first, second : AugmentConfig
        The two views.
    """

    name: Literal["mocov3"] = "mocov3"
    mode: Mode = "same_settings"
    temperature: Annotated[float, AllowInfNan(False), Gt(0)] = 0.2
    momentum: Share = 0.99
    hidden: PositiveInt = 4096
    width: PositiveInt = 256
    first: AugmentConfig = field(default_factory=lambda: _view(1.0, 0.0))
    second: AugmentConfig = field(default_factory=lambda: _view(0.1, 0.2))


class MoCoV3(Objective):
    """Encoder, projector, predictor; keys of their moving average; InfoNCE over the samples of all ranks."""

    Config = MoCoV3Config
    max_zero_stage = 2
    config: MoCoV3Config

    def __init__(self, config: MoCoV3Config, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        hidden, width = config.hidden, config.width
        self.projector = ProjectionHead([encoder.width, hidden, hidden, width], last_scale=False)
        self.predictor = ProjectionHead([width, hidden, width], last_scale=False)
        self.key_encoder, self.key_projector = EMA(encoder), EMA(self.projector)

    @classmethod
    def encoder_design(cls, config: MoCoV3Config) -> EncoderDesign:
        """Fixed positions and a frozen patch embedding in the official mode."""
        if config.mode == "same_settings":
            return EncoderDesign()
        return EncoderDesign(positions="row_first", frozen_patches=True)

    @classmethod
    def views(cls, config: MoCoV3Config) -> tuple[ViewSpec, ...]:
        """Two views of different recipes."""
        return (config.first.view(), config.second.view())

    @classmethod
    def min_samples_per_pass(cls, config: Any) -> int:
        """A sample needs another one that it is not."""
        return 2

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """As published in the official mode: everything, norms and biases too."""
        return self.config.mode == "official" or super().decays(name, parameter)

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Compare the queries of both views with the keys of the other one."""
        first, second = batch.views[:2]
        loss = self.contrast_views(first, second)
        return LossOutput(loss, {"contrast": loss.detach()})

    def contrast_views(self, first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
        """Compute the loss of two views: view 1 finds view 2, and view 2 finds view 1."""
        own = slice(rank() * len(first_BCHW), (rank() + 1) * len(first_BCHW))
        images = torch.cat([first_BCHW, second_BCHW])
        queries = [self.predictor(self.projector(x)) for x in _of_all_ranks(self.encoder(images))]
        with torch.no_grad():
            keys = [self.key_projector(x) for x in _of_all_ranks(self.key_encoder(images))]
        return self.contrast(queries[0][own], keys[1], own) + self.contrast(queries[1][own], keys[0], own)

    def contrast(self, query_BD: Tensor, key_ND: Tensor, own: slice) -> Tensor:
        """Compute 2 T CE of this rank's queries over the keys of all ranks, of which `own` are theirs."""
        temperature = self.config.temperature
        dtype = torch.promote_types(query_BD.dtype, torch.float32)
        return 2 * temperature * info_nce(query_BD.to(dtype), key_ND.to(dtype), temperature, own)

    def after_step(self, info: StepInfo) -> None:
        """Move the average, so that the next step's keys come from weights that include the next step's own.

        The published code does it between queries and keys, with the same weights and the next step's momentum.
        """
        self.update_keys(rising_momentum(self.config.momentum, (info.step + 1) / info.total_steps))

    def update_keys(self, momentum: float) -> None:
        """Move the average of encoder and projector."""
        self.key_encoder.update(self.encoder, momentum)
        self.key_projector.update(self.projector, momentum)


def _of_all_ranks(tokens_BND: Tensor) -> list[Tensor]:
    """Return the class tokens of each view and of all ranks, so that BatchNorm sees them all: two of (N, D)."""
    class_tokens = torch.stack(tokens_BND[:, 0].chunk(2), 1)  # (B, 2, D)
    return list(all_gather(class_tokens).unbind(1))
