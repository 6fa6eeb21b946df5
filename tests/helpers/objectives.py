"""Small objectives and their inputs."""

from dataclasses import replace

import torch

from mrmfast.batch import Batch, GenomeSpec, ModalitySpec
from mrmfast.models.config import ModelConfig
from mrmfast.models.decoders import GenomeDecoderConfig, ImageDecoderConfig
from mrmfast.objectives import build_objective
from mrmfast.objectives.mrm import MaskConfig, MatchConfig, MRMConfig, ReconstructConfig

IMAGE = 32
SMALL = ModelConfig(arch="vit_tiny_patch16_224", genome_layers=2, alpha_dropout=0.0)
SPEC = GenomeSpec(
    modalities=(
        ModalitySpec("snps", "genotype", 9),
        ModalitySpec("pgs", "float", 4),
        ModalitySpec("burden", "binary", 5),
    ),
    groups=(4, 5, 2, 2, 5),
    group_names=tuple("abcde"),
    fill=torch.full((18,), 1.0),
)
_DECODERS = {"image_decoder": ImageDecoderConfig(32, 1, 2), "genome_decoder": GenomeDecoderConfig(32)}


def batch(size=6, image=IMAGE):
    """Images, packed genetics, who has which."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size, 3, image, image), generator=generator, dtype=torch.uint8)
    packed = (
        torch.randint(0, 256, (size, 3), generator=generator, dtype=torch.uint8),
        torch.randn(size, 4, generator=generator),
        torch.randint(0, 256, (size, 1), generator=generator, dtype=torch.uint8),
    )
    return pixels, packed, torch.ones(size, 3, dtype=torch.bool)


def as_batch(image_BCHW, packed, present):
    """The same as the loader hands it over."""
    return Batch((image_BCHW,), (None,), packed, present, None, keys=(), epochs=(), end=0)


def loss_of(model, image_BCHW, packed, present, seed=0):
    """Loss and parts of one forward pass on one view."""
    return model((image_BCHW,), packed, present, None, seed, 0, 1)


def mrm_config(mask=None, reconstruct=None, match=None):
    """MRM with small decoders; dicts of what differs from the defaults."""
    return MRMConfig(
        mask=MaskConfig(**(mask or {})),
        reconstruct=ReconstructConfig(**_DECODERS, **(reconstruct or {})),
        match=MatchConfig(**(match or {})),
    )


def build_mrm(mask=None, reconstruct=None, match=None, *, genome=SPEC, image=IMAGE, **model):
    """MRM with seeded weights."""
    torch.manual_seed(0)
    return build_objective(mrm_config(mask, reconstruct, match), replace(SMALL, **model), image, genome)
