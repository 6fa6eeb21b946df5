"""SimMIM (Xie et al.; CVPR 2022): mask large cells at the encoder's input, and predict their pixels with one layer.

See ``docs/methods/simmim.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Le
from pydantic import AllowInfNan
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from mrmfast.batch import Batch, ViewSpec
from mrmfast.config import PositiveInt
from mrmfast.errors import UserError
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import EncoderDesign, ImageEncoder
from mrmfast.models.patch_embed import denormalise, normalise
from mrmfast.objectives.base import Column, Figure, LossOutput, Mode, Objective, StepInfo

# The published code adds it to the number of masked pixels.
_EPSILON = 1e-5


@dataclass(frozen=True)
class SimMIMConfig:
    """Settings of SimMIM.

    Attributes
    ----------
    mode : {"same_settings", "official"}
        official: BEiT blocks with shared relative positions, layer scale and drop path, as published.
    mask_ratio : float
        Share of cells that are masked.
    cell : int
        Side of a cell, pixels; a multiple of the patch.
    crop : (float, float), optional
        Range of the crop's share of the image's area: (0.67, 1) in the published recipe. By default there is no crop,
        as for the other objectives of this package.
    """

    name: Literal["simmim"] = "simmim"
    mode: Mode = "same_settings"
    mask_ratio: Annotated[float, AllowInfNan(False), Gt(0), Le(1)] = 0.6
    cell: PositiveInt = 32
    crop: tuple[float, float] | None = None


class SimMIM(Objective):
    """Encoder of all tokens, mask tokens among them; a linear head; mean absolute error of the masked pixels."""

    Config = SimMIMConfig
    compiled_method = "reconstruction_loss"
    config: SimMIMConfig

    def __init__(self, config: SimMIMConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        if config.cell % encoder.patch or encoder.image_size % config.cell:
            raise UserError(
                f"objective.cell={config.cell}: must be a multiple of the patch size {encoder.patch} and divide "
                f"data.image_size={encoder.image_size}"
            )
        self.cells = encoder.image_size // config.cell  # a side
        self.masked_cells = math.ceil(self.cells**2 * config.mask_ratio)
        self.mask_token = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1, 1, encoder.width), std=0.02, a=-0.02, b=0.02)
        )
        self.head = nn.Linear(encoder.width, encoder.patch**2 * 3)

    @classmethod
    def encoder_design(cls, config: SimMIMConfig) -> EncoderDesign:
        """Return the published ViT in the official mode."""
        if config.mode == "same_settings":
            return EncoderDesign()
        return EncoderDesign(blocks="beit", positions="relative", layer_scale=0.1, drop_path=0.1)

    @classmethod
    def views(cls, config: SimMIMConfig) -> tuple[ViewSpec, ...]:
        """One view, cropped if ``objective.crop`` is set."""
        return (ViewSpec(crop=config.crop),)

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Mask at random, and predict."""
        image_BCHW = batch.views[0]
        noise_BC = self.draw_noise(len(image_BCHW), info.seed).to(image_BCHW.device, non_blocking=True)
        loss = self.reconstruction_loss(image_BCHW, noise_BC)
        return LossOutput(loss, {"image": loss.detach()})

    def draw_noise(self, samples: int, seed: int) -> Tensor:
        """Draw the noise that decides which cells are masked: (B, cells), on the CPU, so that devices agree."""
        return torch.rand(samples, self.cells**2, generator=torch.Generator().manual_seed(seed))

    def mask(self, noise_BC: Tensor) -> Tensor:
        """Mask the cells with the smallest noise: (B, cells) to bool, (B, patches)."""
        masked_BC = torch.zeros_like(noise_BC, dtype=torch.bool)
        masked_BC = masked_BC.scatter(1, noise_BC.argsort(1)[:, : self.masked_cells], True)
        patches = self.config.cell // self.encoder.patch
        grid = masked_BC.unflatten(1, (self.cells, self.cells))
        return grid.repeat_interleave(patches, 1).repeat_interleave(patches, 2).flatten(1)

    def predict(self, image_BCHW: Tensor, masked_BN: Tensor) -> Tensor:
        """Predict all pixels, (B, 3, S, S), from the patches that are not masked.

        The head gives (channel, row, column) of each patch: a 1 x 1 convolution and PixelShuffle in the published code.
        """
        tokens_BND = self.encoder(image_BCHW, masked_BN=masked_BN, mask_token=self.mask_token)
        predicted_BNP = self.head(tokens_BND[:, 1:])
        grid = self.encoder.grid
        return pixel_shuffle(predicted_BNP.transpose(1, 2).unflatten(2, (grid, grid)), self.encoder.patch)

    def reconstruction_loss(self, image_BCHW: Tensor, noise_BC: Tensor) -> Tensor:
        """Compute the loss for a given masking.

        Parameters
        ----------
        image_BCHW : Tensor, uint8 or normalised, (B, 3, S, S)
        noise_BC : Tensor, (B, cells)
            The cells with the smallest values are masked.
        """
        masked_BN = self.mask(noise_BC)
        predicted = self.predict(image_BCHW, masked_BN)
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        return masked_l1(predicted, normalise(image_BCHW, predicted.dtype), self.as_pixels(masked_BN))

    def as_pixels(self, masked_BN: Tensor) -> Tensor:
        """Spread the mask of patches over their pixels: (B, patches) to (B, 1, S, S)."""
        masked = masked_BN.unflatten(1, (self.encoder.grid, -1))[:, None]
        return masked.repeat_interleave(self.encoder.patch, 2).repeat_interleave(self.encoder.patch, 3)

    def figures(self, batch: Batch) -> list[Figure]:
        """Show images, what the encoder sees of them, and the prediction."""
        image_BCHW = batch.views[0]
        masked_BN = self.mask(self.draw_noise(len(image_BCHW), 0).to(image_BCHW.device))
        predicted = denormalise(self.predict(image_BCHW, masked_BN))
        original = denormalise(normalise(image_BCHW))
        visible = original.masked_fill(self.as_pixels(masked_BN), 128)
        columns = (Column("original", original), Column("visible", visible), Column("prediction", predicted))
        return [Figure("reconstructions", "Training images predicted from their visible cells", columns)]


def masked_l1(predicted_BCHW: Tensor, image_BCHW: Tensor, masked_B1HW: Tensor) -> Tensor:
    """Mean absolute error of the masked pixels and three channels, over the whole batch."""
    error = ((predicted_BCHW - image_BCHW).abs() * masked_B1HW).sum()
    return error / (masked_B1HW.sum(dtype=error.dtype) + _EPSILON) / 3
