"""Settings of the encoders, which all objectives share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import AllowInfNan

# More is a typing error: no model of that size fits a machine.
MOST_LAYERS, MOST_WIDTH, MOST_HEADS, MOST_PIXELS = 256, 16384, 1024, 8192
Layers = Annotated[int, Ge(1), Le(MOST_LAYERS)]
Width = Annotated[int, Ge(1), Le(MOST_WIDTH)]
Heads = Annotated[int, Ge(1), Le(MOST_HEADS)]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the image encoder and of the genome encoder.

    Attributes
    ----------
    arch : str
        timm ViT of the image encoder [paper: ViT-Base].
    depth : int, optional
        Blocks of the image encoder; by default the architecture's own (ViT-B: 12; the 2 + 8 of the paper's Figure 2
        are 10).
    genome_layers : int
        SNN layers of the genome encoder [paper, Figure 2: 8].
    alpha_dropout : float
        AlphaDropout probability of SNN layers [ours].
    """

    arch: str = "vit_base_patch16_224"
    depth: Layers | None = None
    genome_layers: Annotated[int, Ge(0), Le(MOST_LAYERS)] = 8
    alpha_dropout: Annotated[float, AllowInfNan(False), Ge(0), Le(0.99)] = 0.05
