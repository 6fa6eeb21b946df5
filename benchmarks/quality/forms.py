"""The forms of MRM that ``benchmarks/quality`` compares, and a few that only it knows.

All share encoder, decoders, data, order and length of training; a form is what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mrmfast.batch import Batch, GenomeSpec
from mrmfast.models.config import ModelConfig
from mrmfast.models.decoders import GenomeDecoderConfig, ImageDecoderConfig
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.base import LossOutput, StepInfo
from mrmfast.objectives.mrm import MRM, MaskConfig, MatchConfig, MRMConfig, ReconstructConfig
from mrmfast.objectives.mrm.config import Residual
from mrmfast.objectives.mrm.reconstruction import genome_error


@register_model
def mrmfast_learns_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a plain ViT that trains in minutes on one core: patch 8, width 64, 3 blocks, 2 heads."""
    assert not pretrained
    known = {name: value for name, value in kwargs.items() if name in ("img_size", "num_classes")}
    return VisionTransformer(patch_size=8, embed_dim=64, depth=3, num_heads=2, **known)


@dataclass(frozen=True)
class Form:
    """What differs from the others.

    Attributes
    ----------
    meaning : str
        In a few words, for the table.
    residual, tau_image, tau_genome, matching_weight
        As in the project's config.
    genome : bool
        False: image-only MRM.
    trained : bool
    hide : bool
        h_G sees no genome token: it has to predict the genome from image tokens.
    apart : bool
        Those image tokens come from a pass without cross relations, which is what the exported encoder computes. In
        MRM's own pass they have met the genome in the cross relations.
    mrm : bool
        False: nothing but that prediction is trained, the most that this genome could teach this encoder.
    """

    meaning: str
    residual: Residual = "all"
    tau_image: float = 0.75
    tau_genome: float = 0.50
    matching_weight: float = 1.0
    genome: bool = True
    trained: bool = True
    hide: bool = False
    apart: bool = False
    mrm: bool = True


# Those that the config can say (`apart` below is one too: `reconstruct.genome_from: image`), and those that explain
# them.
STOCK = {
    "untrained": Form("untrained encoder", genome=False, trained=False),
    "untrained_literal": Form("the same, as `cross` and `none` export it", "none", genome=False, trained=False),
    "image_only": Form("MRM without a genome", genome=False),
    "all": Form("residual all, tau .75 and .50, matching 1"),
    "cross": Form("residual cross", "cross"),
    "none": Form("residual none: the literal equations", "none"),
    "no_masking": Form("residual all, tau 0 (then matching is 0)", tau_image=0.0, tau_genome=0.0),
    "no_matching": Form("residual all, lambda 0", matching_weight=0.0),
}
EXPLORED = {
    "hidden": Form("residual all; h_G sees z_I alone, which has met the genome", hide=True),
    "apart": Form("residual all, `reconstruct.genome_from: image`", hide=True, apart=True),
    "prediction": Form("no MRM: genome predicted from image tokens", hide=True, apart=True, mrm=False),
}
FORMS = STOCK | EXPLORED


class BlindGenomeDecoder(nn.Module):
    """A genome decoder that is given zeros for the genome's tokens."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, genome_BMD: Tensor, image_BND: Tensor) -> Tensor:
        """(B, M, D) and (B, N, D) to (B, F)."""
        predicted_BF: Tensor = self.decoder(torch.zeros_like(genome_BMD), image_BND)
        return predicted_BF


class GenomePrediction(MRM):
    """The genome loss of ``reconstruct.genome_from: image``, and nothing else of MRM."""

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """As :meth:`MRM.compute_loss`."""
        image_BCHW = batch.views[0]
        unpacked = self.unpack(batch.packed, batch.present)
        assert unpacked is not None and self.spec is not None
        nothing_BMD = torch.zeros(len(image_BCHW), len(self.spec.groups), self.encoder.width)
        predicted_BF = self.genome_decoder(nothing_BMD, self.image_features(image_BCHW))
        loss = genome_error(predicted_BF, *unpacked, self.spec.modalities)
        return LossOutput(loss, {"genome": loss.detach()})


def build_model(form: Form, model: ModelConfig, image_size: int, spec: GenomeSpec | None) -> MRM:
    """Build the objective of a form with decoders that train in minutes; `spec` None is image-only MRM."""
    config = MRMConfig(
        mask=MaskConfig(form.tau_image, form.tau_genome, residual=form.residual),
        reconstruct=ReconstructConfig(
            genome_from="image" if form.apart else "both",
            image_decoder=ImageDecoderConfig(width=64, depth=1, heads=2),
            genome_decoder=GenomeDecoderConfig(width=64, layers=1),
        ),
        match=MatchConfig(weight=form.matching_weight),
    )
    encoder = ImageEncoder(model.arch, image_size, model.depth)
    genome = None if spec is None else GenomeInput(spec, model.genome_layers, model.alpha_dropout)
    built = (MRM if form.mrm else GenomePrediction)(config, encoder, genome)
    if form.mrm and form.hide and not form.apart:
        built.genome_decoder = BlindGenomeDecoder(built.genome_decoder)  # type: ignore[assignment]
    return built


def genome_alone(model: MRM, x_BF: Tensor) -> Tensor:
    """Encode the genome without the image, as ``ImageEncoder.forward`` does the image: (B, F) to pooled (B, D)."""
    assert model.genome is not None
    x_BMD = model.genome.tokens(x_BF)
    blocks: Any = model.genome.blocks
    for block in blocks:
        related_BMD = block.ls1(block.attn(block.norm1(x_BMD)))
        x_BMD = x_BMD + related_BMD if model.config.mask.residual == "all" else related_BMD
        x_BMD = x_BMD + block.ls2(block.mlp(block.norm2(x_BMD)))
    for layer in model.genome.layers:
        x_BMD = layer(x_BMD)
    pooled_BD: Tensor = x_BMD.mean(1)
    return pooled_BD
