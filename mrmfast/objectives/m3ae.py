"""M3AE (Chen, Du, Hu, Liu, Li, Wan, Chang; MICCAI 2022): fuse image and genome, predict what is masked of each.

The genome takes the part of the published text. See ``docs/methods/m3ae.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt, Lt
from pydantic import AllowInfNan
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mrmfast.batch import Batch
from mrmfast.config import NonNegativeInt, PositiveInt, Share
from mrmfast.errors import UserError
from mrmfast.models.decoders import ImageDecoder, ImageDecoderConfig
from mrmfast.models.fusion import CoAttention
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import EncoderDesign, ImageEncoder
from mrmfast.models.patch_embed import denormalise, image_as_patches, normalise
from mrmfast.models.positions import sincos_positions
from mrmfast.objectives.base import Column, Figure, LossOutput, Mode, Objective, StepInfo
from mrmfast.objectives.genome import GenomeReader
from mrmfast.objectives.genome_stream import GenomeStream
from mrmfast.objectives.losses import patch_error, patches_as_pixels

MaskRatio = Annotated[float, AllowInfNan(False), Gt(0), Lt(1)]


@dataclass(frozen=True)
class FusionConfig:
    """Sizes of the fusion.

    Attributes
    ----------
    layers : int
        Of each stream.
    width, heads : int, optional
        The image encoder's by default.
    dropout : float
        Probability in attention and in what each layer adds.
    """

    layers: PositiveInt = 6
    width: PositiveInt | None = None
    heads: PositiveInt | None = None
    dropout: Annotated[Share, Lt(1)] = 0.1


@dataclass(frozen=True)
class M3AEConfig:
    """Settings of M3AE.

    Attributes
    ----------
    mode : {"same_settings", "official"}
        official: CLIP's blocks in image encoder and decoder, and its rule of weight decay.
    image_ratio, genome_ratio : float
        Share of patches, and of genome tokens, that are masked.
    norm_pixels : bool
        Whether each patch of the target is standardised.
    tap : int
        Fusion layers before the image decoder.
    fusion : FusionConfig
        Of both streams.
    decoder : ImageDecoderConfig
        Of the image.
    """

    name: Literal["m3ae"] = "m3ae"
    mode: Mode = "same_settings"
    image_ratio: MaskRatio = 0.75
    genome_ratio: MaskRatio = 0.15
    norm_pixels: bool = True
    tap: NonNegativeInt = 3
    fusion: FusionConfig = field(default_factory=FusionConfig)
    decoder: ImageDecoderConfig = field(default_factory=lambda: ImageDecoderConfig(384, 4, 6))

    def __post_init__(self) -> None:
        if self.tap > self.fusion.layers:
            raise UserError(f"tap={self.tap}: there are {self.fusion.layers} fusion layers; take 0 to that many")


@dataclass(frozen=True)
class Draws:
    """All that is random in a forward pass.

    Attributes
    ----------
    patches_BN : Tensor, (B, patches)
        The patches with the smallest values are visible.
    tokens_BM : Tensor, (B, M)
        The genome tokens with the smallest values are masked.
    partners_B : Tensor of int64, (B,)
        Whose image each genome is shown with in matching: its own, or another one's.
    """

    patches_BN: Tensor
    tokens_BM: Tensor
    partners_B: Tensor


class M3AE(Objective):
    """Two encoders, co-attention, three terms: masked genome, masked image, matching."""

    Config = M3AEConfig
    genetics = "required"
    config: M3AEConfig

    def __init__(self, config: M3AEConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        patches = encoder.grid**2
        self.visible = int(patches * (1 - config.image_ratio))  # MAE's rounding
        if self.visible < 1:
            raise UserError(f"objective.image_ratio={config.image_ratio}: leaves none of {patches} patches visible")
        official = config.mode == "official"
        fusion = config.fusion
        width, heads = fusion.width or encoder.width, fusion.heads or encoder.heads
        if width % heads:
            raise UserError(f"objective.fusion.width={width}: must be a multiple of fusion.heads={heads}")
        self.stream = self.build_stream(genome, width)
        widths = self.stream.width, encoder.width
        self.fusion = CoAttention(widths, width, heads, fusion.layers, fusion.dropout)
        self.poolers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.match = nn.Linear(2 * width, 2)
        positions = sincos_positions(encoder.grid, config.decoder.width).to(torch.get_default_dtype())
        self.decoder = ImageDecoder(
            config.decoder,
            encoder,
            with_mask_token=True,
            positions=positions,
            width_in=width,
            clip_blocks=official,
        )

    def build_stream(self, genome: GenomeInput | None, width: int) -> GenomeStream:
        """Make what encodes and predicts the second modality; `width` is that of the fusion."""
        assert genome is not None
        self.reader = GenomeReader(genome.spec)
        return GenomeStream(genome, self.encoder.width, width)

    @classmethod
    def encoder_design(cls, config: M3AEConfig) -> EncoderDesign:
        """CLIP's blocks in the official mode."""
        return EncoderDesign(blocks="clip" if config.mode == "official" else "vit")

    @classmethod
    def min_samples_per_pass(cls, config: Any) -> int:
        """A wrong partner is another sample."""
        return 2

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """As published in the official mode: all but biases and norms, CLIP's norms included."""
        if self.config.mode != "official":
            return super().decays(name, parameter)
        clip = name.startswith("encoder.") or name.startswith("decoder.blocks.")
        return not name.endswith("bias") and (parameter.ndim >= 2 or clip)

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Draw masks and partners; the loss is the sum of the three terms."""
        image_BCHW = batch.views[0]
        draws = self.draw(len(image_BCHW), info.seed, image_BCHW.device)
        genome = self.reader(batch.packed, batch.present)
        whole_BND = self.encoder(image_BCHW)
        parts = {
            "genome": self.genome_term(genome, whole_BND, draws.tokens_BM),
            "image": self.image_term(genome, image_BCHW, draws.patches_BN),
            "matching": self.matching_term(genome, whole_BND[draws.partners_B], draws.partners_B),
        }
        loss = torch.stack(list(parts.values())).sum()
        return LossOutput(loss, {name: value.detach() for name, value in parts.items()})

    def draw(self, samples: int, seed: int, device: torch.device) -> Draws:
        """Draw on the CPU, so that devices agree; half of the samples, rounded down, keep their image."""
        generator = torch.Generator().manual_seed(seed)
        patches = torch.rand(samples, self.encoder.grid**2, generator=generator)
        tokens = torch.rand(samples, self.stream.maskable, generator=generator)
        wrong = torch.randperm(samples, generator=generator)[samples // 2 :]
        partners = torch.arange(samples)
        distance = torch.randint(1, max(2, samples), (len(wrong),), generator=generator)
        partners[wrong] = (wrong + distance) % samples
        return Draws(*(part.to(device, non_blocking=True) for part in (patches, tokens, partners)))

    def genome_term(self, genome: Any, whole_BND: Tensor, noise_BM: Tensor) -> Tensor:
        """Predict masked genome tokens from the others and the complete image.

        Parameters
        ----------
        genome
            As the stream takes it.
        whole_BND : Tensor, (B, 1 + patches, D)
        noise_BM : Tensor, (B, M)
        """
        masked_BM = self.stream.choose_masked(genome, noise_BM, self.config.genome_ratio)
        tokens, _ = self.fusion(self.stream(genome, masked_BM), self.stream.known(genome), whole_BND)
        return self.stream.loss(self.stream.predict(tokens), genome, masked_BM)

    def image_term(self, genome: Any, image_BCHW: Tensor, noise_BN: Tensor) -> Tensor:
        """Predict masked patches from the others and the complete genome."""
        predicted_BNP, masked_BN = self.predict_image(genome, image_BCHW, noise_BN)
        predicted_BNP = predicted_BNP.to(torch.promote_types(predicted_BNP.dtype, torch.float32))
        return patch_error(predicted_BNP, image_BCHW, self.encoder.patch, self.config.norm_pixels, masked_BN)

    def predict_image(self, genome: Any, image_BCHW: Tensor, noise_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return predicted patches, (B, patches, patch * patch * 3), and which were masked, (B, patches)."""
        order_BN = noise_BN.argsort(1)
        restore_BN = order_BN.argsort(1)
        visible_BKD = self.encoder(image_BCHW, order_BN[:, : self.visible])
        return self.decoder(self.tapped(genome, visible_BKD), restore_BN=restore_BN), restore_BN >= self.visible

    def tapped(self, genome: Any, visible_BKD: Tensor) -> Tensor:
        """Return the image's stream after `tap` fusion layers: what the decoder gets."""
        stream: Tensor = self.fusion(self.stream(genome), self.stream.known(genome), visible_BKD, self.config.tap)[1]
        return stream

    def matching_term(self, genome: Any, shown_BND: Tensor, partners_B: Tensor) -> Tensor:
        """Tell whether image and genome belong together; class 1 says that they do.

        Parameters
        ----------
        genome
            As the stream takes it.
        shown_BND : Tensor, (B, 1 + patches, D)
            The images that are shown with the genomes.
        partners_B : Tensor of int64, (B,)
            Whose images these are. Participants without any genetics carry no loss.
        """
        logits = self.match(self.pooled(genome, shown_BND))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        own = partners_B == torch.arange(len(partners_B), device=partners_B.device)
        counted_B = self.stream.known(genome)[:, 1:].any(1)
        errors_B = cross_entropy(logits, own.long(), reduction="none")
        return (errors_B * counted_B).sum() / counted_B.sum().clamp(min=1)

    def pooled(self, genome: Any, shown_BND: Tensor) -> Tensor:
        """Return the first tokens of both streams, pooled: (B, 2 * width), the genome's first."""
        streams = self.fusion(self.stream(genome), self.stream.known(genome), shown_BND)
        return torch.cat([pooler(x[:, 0]).tanh() for pooler, x in zip(self.poolers, streams, strict=True)], 1)

    def figures(self, batch: Batch) -> list[Figure]:
        """Show images, what the encoder sees of them, and the prediction."""
        image_BCHW, patch, grid = batch.views[0], self.encoder.patch, self.encoder.grid
        draws = self.draw(len(image_BCHW), 0, image_BCHW.device)
        genome = self.reader(batch.packed, batch.present)
        predicted_BNP, masked_BN = self.predict_image(genome, image_BCHW, draws.patches_BN)
        image_BCHW = denormalise(normalise(image_BCHW))
        visible = image_BCHW.clone()
        hidden = masked_BN.unflatten(1, (grid, -1))[:, None, :, None, :, None]
        image_as_patches(visible, patch).masked_fill_(hidden, 128)
        predicted = patches_as_pixels(predicted_BNP, image_BCHW, patch, self.config.norm_pixels)
        columns = (Column("original", image_BCHW), Column("visible", visible), Column("prediction", predicted))
        return [Figure("reconstructions", "Training images predicted from visible patches and the genome", columns)]
