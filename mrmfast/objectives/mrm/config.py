"""Settings of MRM, grouped as the paper is, with the paper's values where it states them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Le

from mrmfast.config import NonNegative, PositiveInt, Share
from mrmfast.errors import UserError
from mrmfast.models.config import Layers
from mrmfast.models.decoders import GenomeDecoderConfig, ImageDecoderConfig

# docs/methods/mrm.md#residual-connections: relation blocks keep their residual around self and cross relations,
# around cross relations only, or around neither. The feed-forward sublayer has its own; the equations do not show it.
Residual = Literal["all", "cross", "none"]


@dataclass(frozen=True)
class MaskConfig:
    """Relation masking.

    Attributes
    ----------
    tau_image, tau_genome : float
        Masking ratios of relations whose queries are the image's, the genome's.
    self_relations, cross_relations : bool
        Whether these are masked [paper, Table 3]. Without either, both branches are the same.
    blocks : int
        Relation masking blocks of both encoders; on the image side the first of its blocks [paper, Figure 2: 2].
    residual : {"all", "cross", "none"}
        Residual connections of relation blocks [ours; docs/methods/mrm.md#residual-connections].
    """

    tau_image: Share = 0.75
    tau_genome: Share = 0.50
    self_relations: bool = True
    cross_relations: bool = True
    blocks: Layers = 2
    residual: Residual = "all"

    @property
    def tau_image_self(self) -> float:
        """The ratio of the image's self relations."""
        return self.tau_image * self.self_relations

    @property
    def tau_genome_self(self) -> float:
        """The ratio of the genome's self relations."""
        return self.tau_genome * self.self_relations

    @property
    def tau_image_cross(self) -> float:
        """The ratio of cross relations whose queries are the image's."""
        return self.tau_image * self.cross_relations

    @property
    def tau_genome_cross(self) -> float:
        """The ratio of cross relations whose queries are the genome's."""
        return self.tau_genome * self.cross_relations


@dataclass(frozen=True)
class ReconstructConfig:
    """Reconstruction.

    Attributes
    ----------
    genome_from : {"both", "image"}
        What the genome decoder is given: z_{G,M} and z_I [paper], or image tokens alone, from a pass without cross
        relations, so that nothing of the genome is in them [ours]. In our measurements only ``image`` makes the genome
        help the image encoder (docs/log.md); it costs a third pass of the image encoder.
    norm_pixels : bool
        Whether the image target is standardised patch by patch, as in MAE [ours].
    binary_cross_entropy : bool
        Whether binary features (burden, mutations) are reconstructed with binary cross-entropy on logits instead of
        squared errors [ours].
    image_decoder : ImageDecoderConfig
        h_I [ours: MAE's sizes].
    genome_decoder : GenomeDecoderConfig
        h_G [ours].
    """

    genome_from: Literal["both", "image"] = "both"
    norm_pixels: bool = False
    binary_cross_entropy: bool = False
    image_decoder: ImageDecoderConfig = field(default_factory=ImageDecoderConfig)
    genome_decoder: GenomeDecoderConfig = field(default_factory=GenomeDecoderConfig)


@dataclass(frozen=True)
class MatchConfig:
    """Relation matching.

    Attributes
    ----------
    self_relations, cross_relations : bool
        Whether L_self and L_cross are part of the loss [paper, Table 3].
    weight : float
        lambda.
    pairs : int
        b, pairs drawn per micro-batch and rank.
    stop_gradient : bool
        Whether matching moves the masked branch alone: no gradient through the intact one [ours].
    """

    self_relations: bool = True
    cross_relations: bool = True
    weight: NonNegative = 1.0
    pairs: Annotated[PositiveInt, Le(65536)] = 8
    stop_gradient: bool = False

    def __post_init__(self) -> None:
        if self.compares_samples and self.pairs < 2:
            raise UserError(
                f"pairs={self.pairs}: relation matching compares samples and needs 2; or set self_relations=false"
            )

    @property
    def compares_samples(self) -> bool:
        """Whether L_self counts, which is about one sample and another."""
        return self.self_relations and self.weight > 0


@dataclass(frozen=True)
class MRMConfig:
    """Settings of Masked Relation Modeling.

    Attributes
    ----------
    mask : MaskConfig
    reconstruct : ReconstructConfig
    match : MatchConfig
    """

    name: Literal["mrm"] = "mrm"
    mask: MaskConfig = field(default_factory=MaskConfig)
    reconstruct: ReconstructConfig = field(default_factory=ReconstructConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
