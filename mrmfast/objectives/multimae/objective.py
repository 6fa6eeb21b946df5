"""MultiMAE: choose visible tokens of all modalities, encode them, decode each output, compare what was masked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from pydantic import AllowInfNan
from torch import Tensor, nn

from mrmfast.batch import Batch
from mrmfast.errors import UserError
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import EncoderDesign, ImageEncoder
from mrmfast.models.patch_embed import denormalise, image_as_patches, normalise
from mrmfast.models.positions import sincos_positions
from mrmfast.models.task_decoder import TaskDecoder, TaskDecoderConfig
from mrmfast.objectives.base import Column, Figure, LossOutput, Mode, Objective, StepInfo
from mrmfast.objectives.genome import GenomeReader, modality_slices
from mrmfast.objectives.losses import patches_as_pixels
from mrmfast.objectives.multimae.adapters import Adapter, GenomeAdapter, ImageAdapter, groups_of_modalities
from mrmfast.objectives.multimae.masking import Draws, choose_visible, draw

PositiveFloat = Annotated[float, AllowInfNan(False), Gt(0)]


@dataclass(frozen=True)
class MultiMAEConfig:
    """Settings of MultiMAE.

    Attributes
    ----------
    mode : {"same_settings", "official"}
        official: fixed positions, no last norm of the encoder, one `alpha` for all modalities. same_settings: the
        encoder of this package, and an alpha in proportion to the number of tokens.
    visible : float
        Visible tokens of all modalities, as a share of the image's patches: 98 at 224 px.
    alpha : float
        Of the Dirichlet distribution of shares; the mean over modalities.
    decoder : TaskDecoderConfig
        Of each output.
    """

    name: Literal["multimae"] = "multimae"
    mode: Mode = "same_settings"
    visible: PositiveFloat = 0.5
    alpha: PositiveFloat = 1.0
    decoder: TaskDecoderConfig = field(default_factory=TaskDecoderConfig)


class MultiMAE(Objective):
    """Encoder of the visible tokens of image and genome, a decoder for each output."""

    Config = MultiMAEConfig
    genetics = "optional"
    config: MultiMAEConfig

    def __init__(self, config: MultiMAEConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        self.kept = int(encoder.grid**2 * config.visible)
        if self.kept < 1:
            raise UserError(f"objective.visible={config.visible}: leaves no token of {encoder.grid**2} patches visible")
        if config.mode == "official":
            encoder.norm = nn.Identity()  # type: ignore[assignment]  # run_blocks calls it
            encoder.arguments["final_norm"] = False  # of timm, for the export
        self.reader = None if genome is None else GenomeReader(genome.spec)
        self.adapters = nn.ModuleList(self.build_adapters(genome))
        adapters = self.each_adapter()
        self.tokens = {adapter.name: adapter.tokens for adapter in adapters}
        if self.kept >= sum(self.tokens.values()):
            raise UserError(f"objective.visible={config.visible}: masks no token; take less, or add genetics")
        positions = {adapter.name: adapter.positions for adapter in adapters if adapter.positions is not None}
        self.outputs: list[tuple[str, Adapter]] = []
        self.decoders = nn.ModuleList()
        for adapter in adapters:
            for output, head in adapter.heads(config.decoder.width).items():
                self.outputs.append((output, adapter))
                decoder = TaskDecoder(config.decoder, encoder.width, adapter.name, self.tokens, positions, head)
                self.decoders.append(decoder)

    @classmethod
    def encoder_design(cls, config: MultiMAEConfig) -> EncoderDesign:
        """Fixed positions in the official mode."""
        return EncoderDesign(positions="row_first" if config.mode == "official" else "learned")

    def build_adapters(self, genome: GenomeInput | None) -> Iterable[Adapter]:
        """Make the modalities in the order of the sequence."""
        encoder = self.encoder
        positions = sincos_positions(encoder.grid, self.config.decoder.width, "row")
        yield ImageAdapter("image", encoder.patch, encoder.grid, positions)
        if genome is not None:
            modalities = genome.spec.modalities
            for spec, groups in zip(modalities, groups_of_modalities(modalities, genome.spec.groups), strict=True):
                yield GenomeAdapter(spec, groups, encoder.width, genome.alpha_dropout)

    def each_adapter(self) -> list[Adapter]:
        """Return the modalities in the order of the sequence."""
        return [adapter for adapter in self.adapters if isinstance(adapter, Adapter)]

    def image_adapter(self) -> ImageAdapter:
        """Return that of the image."""
        return next(adapter for adapter in self.adapters if isinstance(adapter, ImageAdapter))

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Draw what is visible, and predict the rest; the loss is the sum of the outputs' errors."""
        draws = self.draw(len(batch.views[0]), info.seed).to(batch.views[0].device)
        losses = self.losses(*self.read(batch), draws)
        parts = {name: loss.detach() for name, loss in losses.items()}
        return LossOutput(torch.stack(list(losses.values())).sum(), parts)

    def read(self, batch: Batch) -> tuple[dict[str, Any], Tensor | None]:
        """Return the modalities by name, and which tokens a sample has, (B, N)."""
        raw: dict[str, Any] = {"image": batch.views[0]}
        if self.reader is None:
            return raw, None
        x_BF, observed_BF = self.reader(batch.packed, batch.present)
        modalities = self.reader.spec.modalities
        for (name, _, _), features in zip(modalities, modality_slices(modalities), strict=True):
            raw[name] = x_BF[:, features], observed_BF[:, features]
        with_image = torch.cat([torch.ones_like(batch.present[:, :1]), batch.present], 1)
        counts = list(self.tokens.values())
        available = [with_image[:, number, None].expand(-1, count) for number, count in enumerate(counts)]
        return raw, torch.cat(available, 1)

    def draw(self, samples: int, seed: int) -> Draws:
        """Draw shares and noise."""
        counts, alpha = list(self.tokens.values()), self.config.alpha
        mean = 1.0 if self.config.mode == "official" else sum(counts) / len(counts)
        alphas = [alpha if self.config.mode == "official" else alpha * count / mean for count in counts]
        return draw(samples, counts, alphas, seed)

    def losses(self, raw: Mapping[str, Any], available_BN: Tensor | None, draws: Draws) -> dict[str, Tensor]:
        """Compute the error of each output for given draws.

        Parameters
        ----------
        raw : mapping
            The modalities by name, as their adapters take them.
        available_BN : Tensor of bool, (B, N), optional
            Which tokens a sample has; all by default.
        draws : Draws
        """
        kept_BK, restore_BN = choose_visible(draws, self.kept, available_BN)
        masked = dict(zip(self.tokens, (restore_BN >= self.kept).split(list(self.tokens.values()), 1), strict=True))
        predictions = self.predict(self.encode(raw, kept_BK), kept_BK, restore_BN)
        return {
            output: adapter.loss(output, predictions[output], raw[adapter.name], masked[adapter.name])
            for output, adapter in self.outputs
        }

    def visible_tokens(self, raw: Mapping[str, Any], kept_BK: Tensor) -> Tensor:
        """Embed all modalities: the visible tokens, then the global one (the class token), (B, K + 1, D)."""
        image = self.image_adapter()
        global_token, patches = self.encoder.tokens(raw[image.name]).split([1, image.tokens], 1)
        parts = [patches if adapter is image else adapter(raw[adapter.name]) for adapter in self.each_adapter()]
        sequence = torch.cat(parts, 1)
        visible = sequence.gather(1, kept_BK[..., None].expand(-1, -1, sequence.shape[-1]))
        return torch.cat([visible, global_token], 1)

    def encode(self, raw: Mapping[str, Any], kept_BK: Tensor) -> Tensor:
        """Encode the visible tokens and the global one: (B, K + 1, D)."""
        return self.encoder.run_blocks(self.visible_tokens(raw, kept_BK))

    def predict(self, encoded_BKD: Tensor, kept_BK: Tensor, restore_BN: Tensor) -> dict[str, Tensor]:
        """Decode each output: (B, tokens of its modality, ...), or (B, features) of the genome."""
        return {
            output: decoder(encoded_BKD, kept_BK, restore_BN)
            for (output, _), decoder in zip(self.outputs, self.decoders, strict=True)
        }

    def no_weight_decay(self) -> list[nn.Module]:
        """The mask tokens, as published; task embeddings are decayed."""
        return [decoder.mask_token for decoder in self.decoders if isinstance(decoder, TaskDecoder)]

    def figures(self, batch: Batch) -> list[Figure]:
        """Show images, what the encoder sees of them, and the prediction."""
        raw, available_BN = self.read(batch)
        image_BCHW, patch, grid = raw["image"], self.encoder.patch, self.encoder.grid
        draws = self.draw(len(image_BCHW), 0).to(image_BCHW.device)
        kept_BK, restore_BN = choose_visible(draws, self.kept, available_BN)
        predicted = self.predict(self.encode(raw, kept_BK), kept_BK, restore_BN)["image"]
        image_BCHW = denormalise(normalise(image_BCHW))
        visible = image_BCHW.clone()
        hidden = (restore_BN[:, : grid**2] >= self.kept).unflatten(1, (grid, grid))[:, None, :, None, :, None]
        image_as_patches(visible, patch).masked_fill_(hidden, 128)
        pixels = patches_as_pixels(self.image_adapter().pixels(predicted), image_BCHW, patch, norm_pixels=False)
        columns = (Column("original", image_BCHW), Column("visible", visible), Column("prediction", pixels))
        return [Figure("reconstructions", "Training images predicted from visible tokens of all modalities", columns)]
