"""Settings of the model and of the MRM objective, with the paper's values where it states them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mrmfast.models.relation import Residual


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of encoders and decoders.

    Attributes
    ----------
    arch : str
        timm ViT of the image encoder [paper: ViT-Base].
    depth : int, optional
        Blocks of the image encoder, relation blocks among them; by default the architecture's own (ViT-B: 12, so
        2 + 10 [ours]; 10 gives the 2 + 8 of Figure 2).
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
    depth: int | None = None
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
    """The objective's own settings.

    Attributes
    ----------
    tau_image, tau_genome : float
        Masking ratios of relations whose queries are the image's, the genome's.
    mask_self, mask_cross : bool
        Whether self and cross relations are masked [paper, Table 3]. Without either, both branches are the same.
    match_self, match_cross : bool
        Whether L_self and L_cross are part of the loss [paper, Table 3].
    matching_weight : float
        lambda.
    matched_pairs : int
        b, pairs drawn per micro-batch and rank.
    genome_from : {"both", "image"}
        What the genome decoder is given: z_{G,M} and z_I [paper], or image tokens alone, from a pass without cross
        relations, so that nothing of the genome is in them [ours]. In our measurements only ``image`` makes the genome
        help the image encoder (docs/log.md); it costs a third pass of the image encoder.
    stop_gradient : bool
        Whether matching moves the masked branch alone: no gradient through the intact one [ours].
    norm_pixels : bool
        Whether the image target is standardised patch by patch, as in MAE [ours].
    binary_cross_entropy : bool
        Whether binary features (burden, mutations) are reconstructed with binary cross-entropy on logits instead of
        squared errors [ours].
    """

    tau_image: float = 0.75
    tau_genome: float = 0.50
    mask_self: bool = True
    mask_cross: bool = True
    match_self: bool = True
    match_cross: bool = True
    matching_weight: float = 1.0
    matched_pairs: int = 8
    genome_from: Literal["both", "image"] = "both"
    stop_gradient: bool = False
    norm_pixels: bool = False
    binary_cross_entropy: bool = False
