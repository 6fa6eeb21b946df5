"""UK Biobank's genome vector without the data: what benchmarks build the model from."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mrmfast.arithmetic import ceil_div
from mrmfast.batch import GenomeSpec, ModalitySpec

# Bases of GRCh38's autosomes in millions: SNPs and genes are shared out in this proportion, as no list is public.
CHROMOSOMES = (248, 242, 198, 190, 182, 171, 159, 145, 138, 134, 135, 133, 114, 107, 102, 90, 83, 80, 59, 64, 47, 51)
SNPS, SCORES, GENES = 7_854, 481, 18_574


def _by_chromosome(features: int) -> list[int]:
    edges = [round(features * sum(CHROMOSOMES[:n]) / sum(CHROMOSOMES)) for n in range(len(CHROMOSOMES) + 1)]
    return [end - start for start, end in pairwise(edges)]


def ukb_genome() -> GenomeSpec:
    """Return the default grouping: SNPs by chromosome, scores in 4 parts, genes by chromosome; 48 tokens."""
    groups = [
        *_by_chromosome(SNPS),
        *(SCORES * (n + 1) // 4 - SCORES * n // 4 for n in range(4)),
        *_by_chromosome(GENES),
    ]
    modalities = (
        ModalitySpec("snps", "genotype", SNPS),
        ModalitySpec("pgs", "float", SCORES),
        ModalitySpec("burden", "binary", GENES),
    )
    return GenomeSpec(modalities, tuple(groups), tuple(map(str, range(len(groups)))), torch.zeros(sum(groups)))


def ukb_batch(samples: int, image_size: int) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Draw uint8 images, packed genetics and who has which: what an objective is called with."""
    generator = torch.Generator().manual_seed(0)
    shape = (samples, 3, image_size, image_size)
    image = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    snps = torch.randint(0, 256, (samples, ceil_div(SNPS, 4)), generator=generator, dtype=torch.uint8)
    scores = torch.randn(samples, SCORES, generator=generator)
    # A few genes of a person carry something: the packed bytes are mostly 0.
    carried = torch.randint(0, 256, (samples, ceil_div(GENES, 8)), generator=generator, dtype=torch.uint8)
    burden = carried * (torch.rand(carried.shape, generator=generator) < 0.02)
    return image, (snps, scores, burden), torch.ones(samples, 3, dtype=torch.bool)
