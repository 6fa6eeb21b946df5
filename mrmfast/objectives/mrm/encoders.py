"""Both encoders of MRM, both branches: tokens, relation masking blocks, later blocks (paper, Figure 2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers import Attention
from torch import Tensor, nn

from mrmfast.errors import UserError
from mrmfast.models.activation_checkpointing import recomputed
from mrmfast.models.genome_encoder import GenomeInput, GenomeTokens, SNNLayer
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.base import Objective
from mrmfast.objectives.mrm.config import MRMConfig
from mrmfast.objectives.mrm.literal_vit import literal_block
from mrmfast.objectives.mrm.relation import Branches, CrossRelation, self_relation


class GenomeRelationBlock(nn.Module):
    """A relation block of the genome: a pre-norm block as on the image side, its feed-forward part an SNN layer.

    Parameters
    ----------
    width, heads : int
    dropout : float
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.ls1 = nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = SNNLayer(width, dropout)
        self.ls2 = nn.Identity()


class GenomeEncoder(nn.Module):
    """Tokens, relation blocks, SNN layers.

    Parameters
    ----------
    genome : GenomeInput
    encoder : ImageEncoder
        Gives width and heads.
    relation_blocks : int
    """

    def __init__(self, genome: GenomeInput, encoder: ImageEncoder, relation_blocks: int) -> None:
        super().__init__()
        width, dropout = encoder.width, genome.alpha_dropout
        self.tokens = GenomeTokens(genome.spec.groups, width, dropout)
        blocks = (GenomeRelationBlock(width, encoder.heads, dropout) for _ in range(relation_blocks))
        self.blocks = nn.ModuleList(blocks)
        self.layers = nn.ModuleList(SNNLayer(width, dropout) for _ in range(genome.layers))

    def run_layers(self, samples: int, x_BMD: Tensor) -> Tensor:
        """Run the SNN layers on tokens of `samples` samples, one or two branches of them."""
        for layer in self.layers:
            x_BMD = layer(x_BMD, copies=len(x_BMD) // samples)
        return x_BMD


class RelationEncoders(Objective):
    """The encoders' side of MRM: what turns images and genome vectors into tokens of both branches.

    Parameters
    ----------
    config : MRMConfig
    encoder : ImageEncoder
    genome : GenomeInput or None

    Raises
    ------
    UserError
        More relation blocks than the image encoder has blocks.
    """

    config: MRMConfig
    genome: GenomeEncoder | None
    cross_image: nn.ModuleList
    cross_genome: nn.ModuleList

    def __init__(self, config: MRMConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        if config.mask.blocks > len(encoder.blocks):
            raise UserError(
                f"objective.mask.blocks={config.mask.blocks}: {encoder.arch} has {len(encoder.blocks)} blocks; take 1 "
                "to that many, or set model.depth"
            )
        self.activation_checkpointing = False

    def add_genome_side(self, genome: GenomeInput | None) -> None:
        """Add the genome encoder and the cross relations; without a genome there are none."""
        self.genome = None
        if genome is not None:
            blocks, width, heads = self.config.mask.blocks, self.encoder.width, self.encoder.heads
            self.genome = GenomeEncoder(genome, self.encoder, blocks)
            self.cross_image = nn.ModuleList(CrossRelation(width, heads) for _ in range(blocks))
            self.cross_genome = nn.ModuleList(CrossRelation(width, heads) for _ in range(blocks))

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
        samples, blocks, recomputing = len(image_BCHW), self.config.mask.blocks, self.activation_checkpointing
        image, genome = self.encoder.tokens(image_BCHW), None  # (B, 1 + patches, D)
        if x_BF is not None:
            assert self.genome is not None
            genome = self.genome.tokens(x_BF.to(image.dtype))  # (B, M, D)
        for number in range(blocks):
            image, genome = recomputed(recomputing, partial(self.relation_block, number, samples), image, genome)
        image = self.encoder.run_blocks(image, first=blocks)  # (2 B, 1 + patches, D)
        if genome is None:
            return Branches(image, samples), None
        assert self.genome is not None
        genome = recomputed(recomputing, partial(self.genome.run_layers, samples), genome)  # (2 B, M, D)
        return Branches(image, samples), Branches(genome, samples)

    def relation_block(
        self, number: int, samples: int, image_BND: Tensor, genome_BMD: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Run relation block `number` of both encoders on stacked branches (see :class:`Branches`)."""
        mask = self.config.mask
        block = self.encoder.blocks[number]
        image = self_relation(block, Branches(image_BND, samples), mask.tau_image_self, mask.residual)
        if genome_BMD is None:
            return image.batched(_feed_forward(block)).stacked, None
        assert self.genome is not None
        genome_block = self.genome.blocks[number]
        genome = self_relation(genome_block, Branches(genome_BMD, samples), mask.tau_genome_self, mask.residual)
        # Both cross relations start from the self relations' outputs of the same branch [paper].
        over_genome, over_image = self.cross_relations(number)
        to_image = over_genome.relate(image, genome, mask.tau_image_cross)
        to_genome = over_image.relate(genome, image, mask.tau_genome_cross)
        keep = mask.residual != "none"
        image, genome = (image + to_image, genome + to_genome) if keep else (to_image, to_genome)
        genome = genome.batched(_feed_forward(genome_block, copies=genome.copies))
        return image.batched(_feed_forward(block)).stacked, genome.stacked

    def cross_relations(self, number: int) -> tuple[CrossRelation, CrossRelation]:
        """Return the cross relations of a relation block: image over genome, genome over image."""
        image, genome = self.cross_image[number], self.cross_genome[number]
        assert isinstance(image, CrossRelation)
        assert isinstance(genome, CrossRelation)
        return image, genome

    def image_features(self, image_BCHW: Tensor) -> Tensor:
        """Encode images as the exported encoder does, without a genome: (B, 3, S, S) to (B, 1 + patches, D)."""
        mask = self.config.mask
        x_BND = self.encoder.tokens(image_BCHW)
        for block in self.encoder.blocks[: mask.blocks]:
            layer = block if mask.residual == "all" else partial(literal_block, block)
            x_BND = recomputed(self.activation_checkpointing, layer, x_BND)
        return self.encoder.run_blocks(x_BND, first=mask.blocks)


def _feed_forward(block: Any, **options: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x + block.ls2(block.mlp(block.norm2(x), **options))
