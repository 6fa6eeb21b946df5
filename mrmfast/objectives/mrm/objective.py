"""Masked Relation Modeling (Yang, Li, Li, Yuan; ICCV 2023): both branches, cross relations, reconstruction, matching.

``[paper]`` and ``[ours]`` in docstrings keep apart what is published and what we decided where the paper is silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mrmfast.batch import GenomeSpec
from mrmfast.models.activation_checkpointing import recomputed
from mrmfast.models.decoders import GenomeDecoder, ImageDecoder
from mrmfast.models.genome_encoder import GenomeEncoder
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.models.relation import Branches, CrossRelation, self_relation
from mrmfast.objectives.base import Reconstruction, RelationMaps
from mrmfast.objectives.mrm.config import ModelConfig, MRMConfig
from mrmfast.objectives.mrm.matching import draw_pairs, pool, relation_matching
from mrmfast.objectives.mrm.reconstruction import genome_error, image_error, pictures
from mrmfast.objectives.mrm.relation_maps import relation_maps
from mrmfast.ops.genome_unpack import unpack_genome
from mrmfast.ops.wide_products import wide_products

__all__ = ["MRM", "MRMConfig", "ModelConfig"]


class MRM(nn.Module):
    """Encoders, decoders and losses of MRM.

    Parameters
    ----------
    model : ModelConfig
    config : MRMConfig
    image_size : int
        Pixels.
    genome : GenomeSpec or None
        None trains on images alone: cross relations and everything genome-side are absent. [ours]
    """

    compiled_method: ClassVar[str] = "losses"  # what training/compile.py takes as one graph
    fill: Tensor
    cross_image: nn.ModuleList
    cross_genome: nn.ModuleList

    def __init__(self, model: ModelConfig, config: MRMConfig, image_size: int, genome: GenomeSpec | None) -> None:
        super().__init__()
        self.config, self.residual, self.spec = config, model.residual, genome
        self.image = ImageEncoder(model.arch, image_size, model.relation_blocks, model.depth)
        width, heads = self.image.width, self.image.heads
        self.image_decoder = ImageDecoder(
            width,
            self.image.grid,
            self.image.patch,
            model.decoder_width,
            model.decoder_depth,
            model.decoder_heads,
            with_genome=genome is not None,
        )
        self.genome: GenomeEncoder | None = None
        if genome is not None:
            self.genome = GenomeEncoder(
                genome.groups, width, heads, model.relation_blocks, model.genome_layers, model.alpha_dropout
            )
            self.cross_image = nn.ModuleList(CrossRelation(width, heads) for _ in range(model.relation_blocks))
            self.cross_genome = nn.ModuleList(CrossRelation(width, heads) for _ in range(model.relation_blocks))
            self.genome_decoder = GenomeDecoder(
                width,
                genome.groups,
                model.genome_decoder_width,
                model.genome_decoder_layers,
                math.gcd(model.genome_decoder_width, 4),
                model.alpha_dropout,
            )
            self.register_buffer("fill", genome.fill, persistent=False)
        self.checkpointing = False

    def without_decay(self) -> list[nn.Module]:
        """The SNN side: Adam without weight decay is AdamW with decay 0 (method page, settings)."""
        return [] if self.genome is None else [self.genome, self.genome_decoder]

    def blocks_run_in_parts(self) -> list[nn.Module]:
        """Blocks whose sublayers are called one by one: the image's relation blocks."""
        return list(self.image.blocks[: self.image.relation_blocks])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks for the backward pass, and run them again there."""
        self.checkpointing = self.image.checkpointing = self.image_decoder.checkpointing = enable

    def unpack(self, packed: tuple[Tensor, ...], present: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return (x_G, observed), both (B, F), or None without a genome."""
        if self.spec is None:
            return None
        return unpack_genome(packed, present, self.spec.kinds, self.fill.float())

    def encode(self, image_BCHW: Tensor, x_BF: Tensor | None) -> tuple[Branches, Branches | None]:
        """Run both branches of both encoders.

        Parameters
        ----------
        image_BCHW : Tensor, (B, 3, S, S)
            uint8, or normalised.
        x_BF : Tensor or None, (B, F)
            Genome vector, missing values filled.

        Returns
        -------
        z_I : Branches of (B, 1 + patches, D)
        z_G : Branches of (B, M, D), or None
        """
        samples = len(image_BCHW)
        image, genome = self.image.tokens(image_BCHW), None
        if x_BF is not None:
            assert self.genome is not None
            genome = self.genome.tokens(x_BF.to(image.dtype))
        for number in range(self.image.relation_blocks):
            stage = partial(self._relation_block, number, samples)
            image, genome = recomputed(self.checkpointing, stage, image, genome)
        image = self.image.later_blocks(image)
        if genome is None:
            return Branches(image, samples), None
        genome = recomputed(self.checkpointing, partial(self._snn_layers, samples), genome)
        return Branches(image, samples), Branches(genome, samples)

    def _relation_block(
        self, number: int, samples: int, image_BND: Tensor, genome_BMD: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run relation block `number` of both encoders on stacked branches (see :class:`Branches`)."""
        c = self.config
        block = self.image.blocks[number]
        image = self_relation(block, Branches(image_BND, samples), c.tau_image * c.mask_self, self.residual)
        if genome_BMD is None:
            return image.batched(_feed_forward(block)).stacked, None
        assert self.genome is not None
        genome_block = self.genome.blocks[number]
        genome = Branches(genome_BMD, samples)
        genome = self_relation(genome_block, genome, c.tau_genome * c.mask_self, self.residual)
        # Both cross relations start from the self relations' outputs of the same branch [paper].
        cross_image, cross_genome = self.cross_sublayers(number)
        to_image = cross_image.relate(image, genome, c.tau_image * c.mask_cross)
        to_genome = cross_genome.relate(genome, image, c.tau_genome * c.mask_cross)
        keep = self.residual != "none"
        image, genome = (image + to_image, genome + to_genome) if keep else (to_image, to_genome)
        genome = genome.batched(_feed_forward(genome_block, copies=genome.copies))
        return image.batched(_feed_forward(block)).stacked, genome.stacked

    def _snn_layers(self, samples: int, genome_BMD: Tensor) -> Tensor:
        assert self.genome is not None
        for layer in self.genome.layers:
            genome_BMD = layer(genome_BMD, copies=len(genome_BMD) // samples)
        return genome_BMD

    def cross_sublayers(self, number: int) -> tuple[CrossRelation, CrossRelation]:
        """Return the cross relations of a relation block: image over genome, genome over image."""
        image, genome = self.cross_image[number], self.cross_genome[number]
        assert isinstance(image, CrossRelation)
        assert isinstance(genome, CrossRelation)
        return image, genome

    def forward(
        self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute L = L_recon + lambda (L_self + L_cross).

        Parameters
        ----------
        image_BCHW : Tensor, uint8, (B, 3, S, S)
        packed, present
            As in :class:`mrmfast.batch.Batch`.
        seed : int
            Decides which pairs are matched.

        Returns
        -------
        loss : Tensor, scalar
        parts : dict of scalar Tensors
            ``image``, ``genome``, ``self``, ``cross`` (detached; genome and cross only with genetics, self and cross
            only where they are matched).
        """
        chosen = draw_pairs(len(image_BCHW), self.config.matched_pairs, seed)
        chosen = chosen.to(image_BCHW.device, non_blocking=True)
        with wide_products(next(self.parameters())):
            parts = self.losses(image_BCHW, packed, present, chosen)
        weights = {"self": self.config.matching_weight, "cross": self.config.matching_weight}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in parts.items()]).sum()
        return loss, {name: value.detach() for name, value in parts.items()}

    def losses(
        self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor, chosen: Tensor
    ) -> dict[str, Tensor]:
        """Compute the parts of the loss: one graph for ``torch.compile``, from packed genetics to scalars.

        Parameters
        ----------
        image_BCHW, packed, present
            As in :meth:`forward`.
        chosen : Tensor, int64, (b,)
            The samples that are matched: drawing them is what a graph cannot hold.
        """
        unpacked = self.unpack(packed, present)
        c = self.config
        z_image, z_genome = self.encode(image_BCHW, unpacked[0] if unpacked else None)
        image_intact, image_masked = z_image.halves()
        genome_intact, genome_masked = z_genome.halves() if z_genome else (None, None)
        pixels_BNP = self.image_decoder(image_masked, genome_intact)
        parts = {"image": image_error(pixels_BNP, image_BCHW, self.image.patch, c.norm_pixels)}
        if unpacked is not None:
            assert self.spec is not None and genome_masked is not None
            if c.genome_from == "image":
                # Residuals carry the genome to z_{G,M}, cross relations carry it to z_I: both would tell the answer.
                genome_masked = torch.zeros_like(genome_masked)
                image_intact = self.image(image_BCHW, self.residual)
            predicted_BF = self.genome_decoder(genome_masked, image_intact)
            parts["genome"] = genome_error(predicted_BF, *unpacked, self.spec.kinds, c.binary_cross_entropy)
        pooled = [pool(tokens, chosen) if tokens else None for tokens in (z_image, z_genome)]
        assert pooled[0] is not None
        matching = relation_matching(pooled[0], pooled[1], c.stop_gradient, present.any(1)[chosen])
        wanted = {"self": c.match_self, "cross": c.match_cross}
        return {**parts, **{name: value for name, value in matching.items() if wanted[name]}}

    @torch.no_grad()
    def reconstruct(self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor) -> Reconstruction:
        """Predict uint8 images, (B, 3, S, S), from the masked image tokens and the intact genome."""
        unpacked = self.unpack(packed, present)
        z_image, z_genome = self.encode(image_BCHW, unpacked[0] if unpacked else None)
        pixels_BNP = self.image_decoder(z_image.masked, z_genome.intact if z_genome else None)
        return Reconstruction(image_BCHW, pictures(pixels_BNP, image_BCHW, self.image.patch, self.config.norm_pixels))

    @torch.no_grad()
    def relation_maps(self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor) -> RelationMaps:
        """Return relations of the last relation block over the image, intact and masked."""
        return relation_maps(self, image_BCHW, packed, present)


def _feed_forward(block: Any, **options: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x + block.ls2(block.mlp(block.norm2(x), **options))
