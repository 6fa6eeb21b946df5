"""Masked Relation Modeling (Yang, Li, Li, Yuan; ICCV 2023): both branches, cross relations, reconstruction, matching.

``[paper]`` and ``[ours]`` in docstrings keep apart what is published and what we decided where the paper is silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mrmfast.batch import GenomeSpec
from mrmfast.models.decoders import GenomeDecoder, ImageDecoder
from mrmfast.models.genome_snn import GenomeEncoder
from mrmfast.models.pixels import denormalise, normalise, patchify, unpatchify
from mrmfast.models.relation import Branches, CrossRelation, Residual, self_relation
from mrmfast.models.vit import ImageEncoder
from mrmfast.objectives.base import Reconstruction
from mrmfast.objectives.matching import relation_matching
from mrmfast.ops.genome_unpack import unpack_genome


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of encoders and decoders.

    Attributes
    ----------
    arch : str
        timm ViT of the image encoder [paper: ViT-Base].
    relation_blocks : int
        Relation masking blocks of both encoders [paper, Figure 2: 2].
    genome_layers : int
        Plain SNN layers after them [paper, Figure 2: 8].
    alpha_dropout : float
        AlphaDropout probability of SNN layers [ours].
    residual : {"all", "cross", "none"}
        Residual connections of relation blocks [ours; see the method page].
    decoder_width, decoder_depth, decoder_heads : int
        Image decoder [ours: MAE's 512, 8, 16].
    genome_decoder_width, genome_decoder_layers : int
        Genome decoder [ours].
    """

    arch: str = "vit_base_patch16_224"
    relation_blocks: int = 2
    genome_layers: int = 8
    alpha_dropout: float = 0.05
    residual: Residual = "all"
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    genome_decoder_width: int = 256
    genome_decoder_layers: int = 2


@dataclass(frozen=True)
class MRMConfig:
    """The objective's own settings, with the paper's values.

    Attributes
    ----------
    tau_image, tau_genome : float
        Masking ratios.
    matching_weight : float
        lambda.
    matched_pairs : int
        b, pairs drawn per micro-batch and rank.
    """

    tau_image: float = 0.75
    tau_genome: float = 0.50
    matching_weight: float = 1.0
    matched_pairs: int = 8


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

    fill: Tensor
    cross_image: nn.ModuleList
    cross_genome: nn.ModuleList

    def __init__(self, model: ModelConfig, config: MRMConfig, image_size: int, genome: GenomeSpec | None) -> None:
        super().__init__()
        self.config, self.residual, self.spec = config, model.residual, genome
        self.image = ImageEncoder(model.arch, image_size, model.relation_blocks)
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

    def without_decay(self) -> list[nn.Module]:
        """The SNN side: Adam without weight decay is AdamW with decay 0 (method page, settings)."""
        return [] if self.genome is None else [self.genome, self.genome_decoder]

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
            Normalised.
        x_BF : Tensor or None, (B, F)
            Genome vector, missing values filled.

        Returns
        -------
        z_I : Branches of (B, 1 + patches, D)
        z_G : Branches of (B, M, D), or None
        """
        dtype = self.image.norm.weight.dtype
        tau_I, tau_G = self.config.tau_image, self.config.tau_genome
        first = self.image.tokens(image_BCHW.to(dtype))
        image, genome = Branches(first, first), None
        if x_BF is not None:
            assert self.genome is not None
            token = self.genome.tokens(x_BF.to(dtype))
            genome = Branches(token, token)
        for number in range(self.image.relation_blocks):
            block = self.image.blocks[number]
            image = self_relation(block, image, tau_I, self.residual)
            if genome is not None:
                assert self.genome is not None
                genome_block = self.genome.blocks[number]
                genome = self_relation(genome_block, genome, tau_G, self.residual)
                # Both cross relations start from the self relations' outputs of the same branch [paper].
                cross_image, cross_genome = self.cross_sublayers(number)
                to_image = cross_image.relate(image, genome, tau_I)
                to_genome = cross_genome.relate(genome, image, tau_G)
                keep = self.residual != "none"
                image, genome = (image + to_image, genome + to_genome) if keep else (to_image, to_genome)
                genome = genome.batched(_feed_forward(genome_block, copies=genome.copies))
            image = image.batched(_feed_forward(block))
        image = image.batched(self._later_blocks)
        if genome is not None:
            assert self.genome is not None
            for layer in self.genome.layers:
                genome = genome.batched(partial(layer, copies=genome.copies))
        return image, genome

    def cross_sublayers(self, number: int) -> tuple[CrossRelation, CrossRelation]:
        """Return the cross relations of a relation block: image over genome, genome over image."""
        image, genome = self.cross_image[number], self.cross_genome[number]
        assert isinstance(image, CrossRelation)
        assert isinstance(genome, CrossRelation)
        return image, genome

    def _later_blocks(self, x_BND: Tensor) -> Tensor:
        for block in self.image.blocks[self.image.relation_blocks :]:
            x_BND = block(x_BND)
        return self.image.norm(x_BND)

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
            ``image``, ``genome``, ``self``, ``cross`` (detached; genome and cross only with genetics).
        """
        image_BCHW = normalise(image_BCHW)
        unpacked = self.unpack(packed, present)
        z_image, z_genome = self.encode(image_BCHW, unpacked[0] if unpacked else None)
        pixels_BNP = self.image_decoder(z_image.masked, z_genome.intact if z_genome else None)
        # All patches count: nothing was masked at the input. Means over elements [ours].
        parts = {"image": (pixels_BNP.float() - patchify(image_BCHW, self.image.patch)).square().mean()}
        if unpacked is not None:
            assert z_genome is not None
            x_BF, observed_BF = unpacked
            predicted_BF = self.genome_decoder(z_genome.masked, z_image.intact).float()
            error = (predicted_BF - x_BF).square() * observed_BF
            parts["genome"] = error.sum() / observed_BF.sum().clamp(min=1)
        chosen = _draw_pairs(len(image_BCHW), self.config.matched_pairs, seed).to(image_BCHW.device)
        parts.update(relation_matching(_pool(z_image, chosen), _pool(z_genome, chosen) if z_genome else None))
        weights = {"self": self.config.matching_weight, "cross": self.config.matching_weight}
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in parts.items()]).sum()
        return loss, {name: value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def reconstruct(self, image_BCHW: Tensor, packed: tuple[Tensor, ...], present: Tensor) -> Reconstruction:
        """Predict uint8 images, (B, 3, S, S), from the masked image tokens and the intact genome."""
        unpacked = self.unpack(packed, present)
        z_image, z_genome = self.encode(normalise(image_BCHW), unpacked[0] if unpacked else None)
        pixels_BNP = self.image_decoder(z_image.masked, z_genome.intact if z_genome else None)
        return Reconstruction(image_BCHW, denormalise(unpatchify(pixels_BNP.float(), self.image.patch)))


def _feed_forward(block: Any, **options: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x + block.ls2(block.mlp(block.norm2(x), **options))


def _draw_pairs(samples: int, pairs: int, seed: int) -> Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))[:pairs]


def _pool(tokens: Branches, chosen: Tensor) -> Branches:
    """Mean over tokens of the chosen samples, in float32: (b, D) [ours]."""
    return Branches(tokens.intact[chosen].float().mean(1), tokens.masked[chosen].float().mean(1))
