"""Masked autoencoder (He, Chen, Xie, Li, Dollár, Girshick; CVPR 2022): predict three quarters of an image.

The methods of :class:`MAE` are in the paper's order: mask, encode, decode, compare. See ``docs/methods/mae.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Lt
from pydantic import AllowInfNan
from torch import Tensor, nn

from mrmfast.batch import Batch, ViewSpec
from mrmfast.errors import UserError
from mrmfast.models.decoders import ImageDecoder, ImageDecoderConfig
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import EncoderDesign, ImageEncoder
from mrmfast.models.patch_embed import denormalise, image_as_patches, normalise
from mrmfast.models.positions import sincos_positions
from mrmfast.objectives.base import Column, Figure, LossOutput, Mode, Objective, StepInfo
from mrmfast.objectives.losses import patch_error, patches_as_pixels


@dataclass(frozen=True)
class MAEConfig:
    """Settings of MAE.

    Attributes
    ----------
    mode : {"same_settings", "official"}
        official: fixed positions of the encoder, and weight decay of class and mask token, as published.
    mask_ratio : float
        Share of patches that the encoder does not see.
    norm_pixels : bool
        Whether each patch of the target is standardised (on in the published recipe, off in its code's defaults).
    crop : (float, float), optional
        Range of the crop's share of the image's area: (0.2, 1) in the published recipe. By default there is no crop, as
        for the other objectives of this package.
    decoder : ImageDecoderConfig
    """

    name: Literal["mae"] = "mae"
    mode: Mode = "same_settings"
    mask_ratio: Annotated[float, AllowInfNan(False), Gt(0), Lt(1)] = 0.75
    norm_pixels: bool = True
    crop: tuple[float, float] | None = None
    decoder: ImageDecoderConfig = field(default_factory=ImageDecoderConfig)


class MAE(Objective):
    """Encoder of the visible patches, decoder of all, error of the masked ones."""

    Config = MAEConfig
    compiled_method = "reconstruction_loss"
    config: MAEConfig

    def __init__(self, config: MAEConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        patches = encoder.grid**2
        # The published rounding: floating point, down.
        self.visible = int(patches * (1 - config.mask_ratio))
        if not 0 < self.visible < patches:
            raise UserError(
                f"objective.mask_ratio={config.mask_ratio}: leaves {self.visible} of {patches} patches visible; "
                "some have to be, and some not"
            )
        positions = sincos_positions(encoder.grid, config.decoder.width).to(torch.get_default_dtype())
        self.decoder = ImageDecoder(config.decoder, encoder, with_mask_token=True, positions=positions)

    @classmethod
    def encoder_design(cls, config: MAEConfig) -> EncoderDesign:
        """Fixed positions in the official mode."""
        return EncoderDesign(positions="column_first" if config.mode == "official" else "learned")

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """As published in the official mode: all but vectors."""
        return parameter.ndim >= 2 if self.config.mode == "official" else super().decays(name, parameter)

    @classmethod
    def views(cls, config: MAEConfig) -> tuple[ViewSpec, ...]:
        """One view, cropped if ``objective.crop`` is set."""
        return (ViewSpec(crop=config.crop),)

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Mask at random, and predict."""
        image_BCHW = batch.views[0]
        noise_BN = self.draw_noise(len(image_BCHW), info.seed).to(image_BCHW.device, non_blocking=True)
        loss = self.reconstruction_loss(image_BCHW, noise_BN)
        return LossOutput(loss, {"image": loss.detach()})

    def draw_noise(self, samples: int, seed: int) -> Tensor:
        """Draw the noise that decides what is masked: (B, patches), on the CPU, so that devices agree."""
        return torch.rand(samples, self.encoder.grid**2, generator=torch.Generator().manual_seed(seed))

    def reconstruction_loss(self, image_BCHW: Tensor, noise_BN: Tensor) -> Tensor:
        """Compute the loss for a given masking.

        Parameters
        ----------
        image_BCHW : Tensor, uint8 or normalised, (B, 3, S, S)
        noise_BN : Tensor, (B, patches)
            The patches with the smallest values are visible.
        """
        predicted_BNP, masked_BN = self.predict(image_BCHW, noise_BN)
        predicted_BNP = predicted_BNP.to(torch.promote_types(predicted_BNP.dtype, torch.float32))
        return patch_error(predicted_BNP, image_BCHW, self.encoder.patch, self.config.norm_pixels, masked_BN)

    def predict(self, image_BCHW: Tensor, noise_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return predicted patches, (B, patches, patch * patch * 3), and which were masked, (B, patches)."""
        order_BN = noise_BN.argsort(1)
        restore_BN = order_BN.argsort(1)  # the rank of each patch: where the decoder finds it
        tokens_BKD = self.encoder(image_BCHW, order_BN[:, : self.visible])  # (B, 1 + visible, D)
        return self.decoder(tokens_BKD, restore_BN=restore_BN), restore_BN >= self.visible

    def figures(self, batch: Batch) -> list[Figure]:
        """Show images, what the encoder sees of them, and the prediction."""
        image_BCHW, patch = batch.views[0], self.encoder.patch
        noise_BN = self.draw_noise(len(image_BCHW), 0).to(image_BCHW.device)
        predicted_BNP, masked_BN = self.predict(image_BCHW, noise_BN)
        image_BCHW = denormalise(normalise(image_BCHW))
        visible = image_BCHW.clone()
        hidden = masked_BN.unflatten(1, (self.encoder.grid, -1))[:, None, :, None, :, None]
        image_as_patches(visible, patch).masked_fill_(hidden, 128)
        predicted = patches_as_pixels(predicted_BNP, image_BCHW, patch, self.config.norm_pixels)
        columns = (Column("original", image_BCHW), Column("visible", visible), Column("prediction", predicted))
        return [Figure("reconstructions", "Training images predicted from their visible patches", columns)]
