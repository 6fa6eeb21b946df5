"""mc-BEiT (Li, Ge, Yi, Hu, Shan, Duan; ECCV 2022): predict a mixture of codes for each masked patch.

See ``docs/methods/mcbeit.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from pydantic import AllowInfNan
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from mrmfast.batch import Batch
from mrmfast.config import Share
from mrmfast.errors import UserError
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import EncoderDesign, ImageEncoder
from mrmfast.models.tokenizer import Tokenizer, random_tokenizer, read_tokenizer
from mrmfast.objectives.base import LossOutput, Mode, Objective, StepInfo

Temperature = Annotated[float, AllowInfNan(False), Gt(0)]


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer, which is not trained with the encoder.

    Attributes
    ----------
    file : str, optional
        Codebook that ``mrmfast tokenizer`` has trained. By default the codes are random smooth patches, which need no
        training images; they are for trials.
    sha256 : str, optional
        Digest of the file, which the command prints; another file is refused.
    codes : int
        Number of random codes, without a file.
    """

    file: str | None = None
    sha256: str | None = None
    codes: Annotated[int, Ge(2)] = 8192

    def __post_init__(self) -> None:
        if self.sha256 is not None and self.file is None:
            raise UserError(f"sha256={self.sha256}: is that of a file; set tokenizer.file too")


@dataclass(frozen=True)
class McBEiTConfig:
    """Settings of mc-BEiT.

    Attributes
    ----------
    mode : {"same_settings", "official"}
        official: BEiT blocks with shared relative positions, layer scale and drop path; a gradient flows through the
        target, too. same_settings: this package's encoder; the target is a constant.
    mask_ratio : float
        Share of patches that are masked.
    omega : float
        Share of the target that comes from similar patches of the image.
    temperature : float
        Divides the tokenizer's logits.
    similarity_temperature : float
        Divides the cosines between patches.
    tokenizer : TokenizerConfig
    """

    name: Literal["mcbeit"] = "mcbeit"
    mode: Mode = "same_settings"
    mask_ratio: Annotated[float, AllowInfNan(False), Gt(0), Lt(1)] = 0.75
    omega: Share = 0.2
    temperature: Temperature = 4.0
    similarity_temperature: Temperature = 1.0
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)


class McBEiT(Objective):
    """Encoder of all tokens, mask tokens among them; a head over codes; cross-entropy to a mixture of codes."""

    Config = McBEiTConfig
    compiled_method = "masked_loss"
    config: McBEiTConfig

    def __init__(self, config: McBEiTConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        self.masked = int(encoder.grid**2 * config.mask_ratio)
        if self.masked < 1:
            raise UserError(f"objective.mask_ratio={config.mask_ratio}: masks none of {encoder.grid**2} patches")
        self.tokenizer = self.build_tokenizer()
        self.mask_token = nn.Parameter(_normal(torch.empty(1, 1, encoder.width)))
        self.head = nn.Linear(encoder.width, len(self.tokenizer.codes))
        _normal(self.head.weight.data)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def encoder_design(cls, config: McBEiTConfig) -> EncoderDesign:
        """Return the published ViT in the official mode."""
        if config.mode == "same_settings":
            return EncoderDesign()
        return EncoderDesign(blocks="beit", positions="relative", layer_scale=0.1, drop_path=0.1)

    def build_tokenizer(self) -> Tokenizer:
        """Read the codebook, or make a random one; a code covers a patch at half resolution."""
        config, patch = self.config.tokenizer, self.encoder.patch
        if patch % 2:
            raise UserError(f"model.arch={self.encoder.arch}: the tokenizer needs an even patch size, not {patch}")
        if config.file is None:
            return random_tokenizer(config.codes, patch // 2)
        tokenizer = read_tokenizer(Path(config.file), config.sha256)
        if tokenizer.cell != patch // 2:
            raise UserError(
                f"objective.tokenizer.file={config.file}: made for patches of {2 * tokenizer.cell} pixels, the "
                f"encoder's have {patch}; train one with this model.arch"
            )
        return tokenizer

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Mask at random, and predict codes."""
        image_BCHW = batch.views[0]
        noise_BN = self.draw_noise(len(image_BCHW), info.seed).to(image_BCHW.device, non_blocking=True)
        loss = self.masked_loss(image_BCHW, noise_BN, self.tokenizer(image_BCHW))
        return LossOutput(loss, {"codes": loss.detach()})

    def draw_noise(self, samples: int, seed: int) -> Tensor:
        """Draw the noise that decides what is masked: (B, patches), on the CPU, so that devices agree."""
        return torch.rand(samples, self.encoder.grid**2, generator=torch.Generator().manual_seed(seed))

    def masked_loss(self, image_BCHW: Tensor, noise_BN: Tensor, logits_BNV: Tensor) -> Tensor:
        """Compute the loss for a given masking.

        Parameters
        ----------
        image_BCHW : Tensor, uint8 or normalised, (B, 3, S, S)
        noise_BN : Tensor, (B, patches)
            The patches with the smallest values are masked.
        logits_BNV : Tensor, (B, patches, V)
            The tokenizer's.
        """
        rows_BM = self.choose_masked(noise_BN)
        features_BND = self.features(image_BCHW, rows_BM)
        predicted_BMV = self.head(_rows(features_BND, rows_BM))
        target_BMV = self.target(features_BND, logits_BNV, rows_BM)
        return -(target_BMV * log_softmax(predicted_BMV.to(target_BMV.dtype), -1)).sum(-1).mean()

    def choose_masked(self, noise_BN: Tensor) -> Tensor:
        """Return which patches are masked, (B, M), in their own order."""
        return noise_BN.argsort(1)[:, : self.masked].sort(1).values

    def features(self, image_BCHW: Tensor, rows_BM: Tensor) -> Tensor:
        """Encode the image with mask tokens in place of patches: (B, patches, D)."""
        masked_BN = torch.zeros(len(rows_BM), self.encoder.grid**2, dtype=torch.bool, device=rows_BM.device)
        masked_BN = masked_BN.scatter(1, rows_BM, True)
        return self.encoder(image_BCHW, masked_BN=masked_BN, mask_token=self.mask_token)[:, 1:]

    def target(self, features_BND: Tensor, logits_BNV: Tensor, rows_BM: Tensor) -> Tensor:
        """Mix the codes of a patch with those of similar patches: omega W p + (1 - omega) p, of the rows (B, M, V)."""
        c = self.config
        codes_BNV = (logits_BNV / c.temperature).softmax(-1)
        similar_BMN = self.similarity(features_BND, rows_BM)
        if c.mode == "same_settings":
            similar_BMN = similar_BMN.detach()
        return c.omega * (similar_BMN.to(codes_BNV.dtype) @ codes_BNV) + (1 - c.omega) * _rows(codes_BNV, rows_BM)

    def similarity(self, features_BND: Tensor, rows_BM: Tensor) -> Tensor:
        """Return W = softmax of the cosines between patches, own and masked ones included: (B, M, patches)."""
        wide = features_BND.to(torch.promote_types(features_BND.dtype, torch.float32))
        unit_BND = normalize(wide, dim=-1)
        cosines = _rows(unit_BND, rows_BM) @ unit_BND.transpose(1, 2)
        return (cosines / self.config.similarity_temperature).softmax(-1)


def _rows(x_BND: Tensor, rows_BM: Tensor) -> Tensor:
    return x_BND.gather(1, rows_BM[..., None].expand(-1, -1, x_BND.shape[-1]))


def _normal(x: Tensor) -> Tensor:
    """Fill with the published normal distribution, cut at its standard deviation."""
    return nn.init.trunc_normal_(x, std=0.02, a=-0.02, b=0.02)
