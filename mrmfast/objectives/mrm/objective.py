"""MRM in the paper's order: encode both branches with relation masking, reconstruct, match.

``[paper]`` and ``[ours]`` in docstrings keep apart what is published and what we decided where the paper is silent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmfast.batch import Batch
from mrmfast.models.decoders import GenomeDecoder, ImageDecoder
from mrmfast.models.export import ExportRecipe
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.base import Column, Figure, LossOutput, StepInfo
from mrmfast.objectives.losses import patch_error, patches_as_pixels
from mrmfast.objectives.mrm.config import MRMConfig
from mrmfast.objectives.mrm.encoders import RelationEncoders
from mrmfast.objectives.mrm.literal_vit import literal_recipe
from mrmfast.objectives.mrm.matching import draw_pairs, pool, relation_matching
from mrmfast.objectives.mrm.reconstruction import genome_error
from mrmfast.objectives.mrm.relation import Branches
from mrmfast.objectives.mrm.relation_maps import relation_figure
from mrmfast.ops.genome_unpack import unpack_genome


class MRM(RelationEncoders):
    """Encoders, decoders and losses of MRM.

    Parameters
    ----------
    config : MRMConfig
    encoder : ImageEncoder
    genome : GenomeInput or None
        None trains on images alone: cross relations and everything genome-side are absent. [ours]
    """

    Config = MRMConfig
    genetics = "optional"
    compiled_method = "losses"
    fill: Tensor

    def __init__(self, config: MRMConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        self.spec = None if genome is None else genome.spec
        # The order of construction decides initial weights, and that of registration the layout of checkpoints.
        sizes = config.reconstruct
        self.image_decoder = ImageDecoder(sizes.image_decoder, encoder, with_genome=genome is not None)
        self.add_genome_side(genome)
        if genome is not None:
            groups = genome.spec.groups
            self.genome_decoder = GenomeDecoder(sizes.genome_decoder, encoder.width, groups, genome.alpha_dropout)
            self.register_buffer("fill", genome.spec.fill, persistent=False)

    @classmethod
    def min_samples_per_pass(cls, config: MRMConfig) -> int:
        """L_self compares one sample with another."""
        return 2 if config.match.compares_samples else 1

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Compute L = L_recon + lambda (L_self + L_cross).

        The parts are ``image``, ``genome``, ``self``, ``cross``: genome and cross only with genetics, self and cross
        only where they are matched.
        """
        (image_BCHW,) = batch.views
        pairs = draw_pairs(len(image_BCHW), self.config.match.pairs, info.seed)
        pairs = pairs.to(image_BCHW.device, non_blocking=True)  # (b,)
        parts = self.losses(image_BCHW, batch.packed, batch.present, pairs)
        weights = {"self": self.config.match.weight, "cross": self.config.match.weight}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in parts.items()]).sum()
        return LossOutput(loss, {name: value.detach() for name, value in parts.items()})

    def losses(
        self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor, pairs: Tensor
    ) -> dict[str, Tensor]:
        """Compute the parts of the loss: one graph for ``torch.compile``, from packed genetics to scalars.

        Parameters
        ----------
        image_BCHW : Tensor, (B, 3, S, S)
        packed, present
            As in :class:`mrmfast.batch.Batch`.
        pairs : Tensor of int64, (b,)
            The samples that are matched: a graph cannot hold how they are drawn.
        """
        unpacked = self.unpack(packed, present)  # x_G and what of it was observed, each (B, F)
        z_image, z_genome = self.encode(image_BCHW, unpacked[0] if unpacked else None)
        parts = self.reconstruct(z_image, z_genome, image_BCHW, unpacked)
        return parts | self.match(z_image, z_genome, pairs, present.any(1)[pairs])

    def unpack(self, packed: tuple[Tensor, ...], present: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (x_G, observed), both (B, F), or None without a genome."""
        if self.spec is None:
            return None
        return unpack_genome(packed, present, self.spec.modalities, self.fill.float())

    def reconstruct(
        self,
        z_image: Branches,
        z_genome: Branches | None,
        image_BCHW: Tensor,
        unpacked: tuple[Tensor, Tensor] | None,
    ) -> dict[str, Tensor]:
        """Compute both terms of L_recon: ``image`` from (z_{I,M}, z_G), ``genome`` from (z_{G,M}, z_I)."""
        c = self.config.reconstruct
        image_intact, image_masked = z_image.halves()  # each (B, 1 + patches, D)
        genome_intact, genome_masked = z_genome.halves() if z_genome else (None, None)  # each (B, M, D)
        pixels_BNP = self.image_decoder(image_masked, genome_intact)
        # Nothing was masked at the input, so all patches count [ours].
        parts = {"image": patch_error(pixels_BNP.float(), image_BCHW, self.encoder.patch, c.norm_pixels)}
        if unpacked is not None:
            assert self.spec is not None and genome_masked is not None
            if c.genome_from == "image":
                # Residuals carry the genome to z_{G,M}, cross relations carry it to z_I: both would reveal the target.
                genome_masked = torch.zeros_like(genome_masked)
                image_intact = self.image_features(image_BCHW)
            predicted_BF = self.genome_decoder(genome_masked, image_intact)
            parts["genome"] = genome_error(predicted_BF, *unpacked, self.spec.modalities, c.binary_cross_entropy)
        return parts

    def match(self, z_image: Branches, z_genome: Branches | None, pairs: Tensor, known: Tensor) -> dict[str, Tensor]:
        """Compute L_self and, with a genome, L_cross over the drawn pairs; `known`, (b,): who has any genetics."""
        c = self.config.match
        image, genome = pool(z_image, pairs), pool(z_genome, pairs) if z_genome else None  # Branches of (b, D)
        matching = relation_matching(image, genome, c.stop_gradient, known)
        counted = {"self": c.self_relations, "cross": c.cross_relations}
        return {name: value for name, value in matching.items() if counted[name]}

    def blocks_run_in_parts(self) -> list[nn.Module]:
        """The image's relation blocks: their sublayers are called one by one."""
        return list(self.encoder.blocks[: self.config.mask.blocks])

    def no_weight_decay(self) -> list[nn.Module]:
        """The SNN side: Adam without weight decay is AdamW with decay 0 (docs/methods/mrm.md#training-settings)."""
        return [] if self.genome is None else [self.genome, self.genome_decoder]

    def export_recipe(self) -> ExportRecipe:
        """Return timm's own ViT, or one with literal relation blocks where these have no residual."""
        mask = self.config.mask
        return super().export_recipe() if mask.residual == "all" else literal_recipe(self.encoder, mask.blocks)

    def figures(self, batch: Batch) -> list[Figure]:
        """Show reconstructions from masked image tokens and the intact genome, and relation maps."""
        image_BCHW = batch.views[0]
        unpacked = self.unpack(batch.packed, batch.present)
        z_image, z_genome = self.encode(image_BCHW, unpacked[0] if unpacked else None)
        pixels_BNP = self.image_decoder(z_image.masked, z_genome.intact if z_genome else None)
        predicted = patches_as_pixels(pixels_BNP, image_BCHW, self.encoder.patch, self.config.reconstruct.norm_pixels)
        columns = (Column("original", image_BCHW), Column("reconstruction", predicted))
        reconstructions = Figure("reconstructions", "Training images rebuilt from the masked branch", columns)
        return [reconstructions, relation_figure(self, image_BCHW, unpacked[0] if unpacked else None)]
