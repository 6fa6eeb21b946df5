"""ContIG (Taleb, Kirchler, Monti, Lippert; CVPR 2022): an image finds the genome of its participant among all others.

See ``docs/methods/contig.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from pydantic import AllowInfNan
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mrmfast.batch import Batch
from mrmfast.config import PositiveInt, Share
from mrmfast.models.genome_encoder import GenomeInput
from mrmfast.models.image_encoder import ImageEncoder
from mrmfast.objectives.base import LossOutput, Mode, Objective, StepInfo
from mrmfast.objectives.collectives import all_gather
from mrmfast.objectives.genome import GenomeReader, modality_slices
from mrmfast.objectives.losses import similarities


@dataclass(frozen=True)
class ContIGConfig:
    """Settings of ContIG.

    Attributes
    ----------
    mode : {"same_settings", "official"}
        official: weight decay of every parameter, as published. Heads, loss and missing rows are the published ones in
        both.
    temperature : float
        Divides the cosine similarities in the loss.
    alpha : float
        Weight of the direction from image to genome; the other one has 1 - alpha.
    width : int
        Of the vectors that are compared.
    hidden : int
        Width inside a genome projection.
    genome_layers : tuple of int
        Widths of the layers before a genome projection: none by default, as published; (2048,) is the published H1 and
        (2048, 2048) is H12.
    """

    name: Literal["contig"] = "contig"
    mode: Mode = "same_settings"
    temperature: Annotated[float, AllowInfNan(False), Gt(0)] = 0.1
    alpha: Share = 0.75
    width: PositiveInt = 128
    hidden: PositiveInt = 2048
    genome_layers: tuple[PositiveInt, ...] = ()


def _projection(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out))


class GenomeProjection(nn.Module):
    """Layers of a genome network (Linear, ReLU, BatchNorm in that order), then a projection.

    The statistics of BatchNorm are always those of the batch, so there are no running ones.

    Parameters
    ----------
    features : int
    config : ContIGConfig
    """

    def __init__(self, features: int, config: ContIGConfig) -> None:
        super().__init__()
        widths = [features, *config.genome_layers]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.BatchNorm1d(after, track_running_stats=False)]
        self.network = nn.Sequential(*layers)
        self.projection = _projection(widths[-1], config.hidden, config.width)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, features) to (B, width)."""
        projected: Tensor = self.projection(self.network(x_BF))
        return projected


class ContIG(Objective):
    """Encoder, projections of image and genome for each modality, cross-entropy in both directions."""

    Config = ContIGConfig
    genetics = "required"
    config: ContIGConfig

    def __init__(self, config: ContIGConfig, encoder: ImageEncoder, genome: GenomeInput | None) -> None:
        super().__init__(config, encoder, genome)
        assert genome is not None
        self.reader = GenomeReader(genome.spec)
        self.names = [name for name, _, _ in genome.spec.modalities]
        # Lists, as a modality's name may hold a dot.
        self.image_projections = nn.ModuleList(
            _projection(encoder.width, encoder.width, config.width) for _ in self.names
        )
        self.genome_projections = nn.ModuleList(
            GenomeProjection(count, config) for _, _, count in genome.spec.modalities
        )

    @classmethod
    def min_samples_per_pass(cls, config: Any) -> int:
        """A genome needs another one that it is not."""
        return 2

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """As published in the official mode: everything."""
        return self.config.mode == "official" or super().decays(name, parameter)

    def compute_loss(self, batch: Batch, info: StepInfo) -> LossOutput:
        """Encode the images, and compare them with the genomes of all ranks.

        Every rank compares the samples of all ranks: which of them have a modality, and so their number, differs
        between ranks. The gradients that the engine averages are those of one process.
        """
        features_BD = all_gather(self.encoder(batch.views[0])[:, 0])  # the class token
        x_BF, _ = self.reader(batch.packed, batch.present)
        present = all_gather(batch.present.to(torch.uint8)).bool()
        losses = self.contrast(features_BD, all_gather(x_BF), present)
        parts = {name: loss.detach() for name, loss in zip(self.names, losses, strict=True)}
        return LossOutput(torch.stack(losses).mean(), parts)

    def contrast(self, features_BD: Tensor, x_BF: Tensor, present: Tensor) -> list[Tensor]:
        """Compute the loss of each modality; their mean is the loss, also where nobody has one of them.

        Parameters
        ----------
        features_BD : Tensor, (B, D)
        x_BF : Tensor, (B, F)
        present : Tensor of bool, (B, modalities)
        """
        pairs = zip(*self.project(features_BD, x_BF, present), strict=True)
        c = self.config
        return [
            contig_loss(image, genome, c.temperature, c.alpha, present[:, number])
            for number, (image, genome) in enumerate(pairs)
        ]

    def project(self, features_BD: Tensor, x_BF: Tensor, present: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return, per modality, the projections of images and of genomes: each (B, width), float32 or wider.

        A row whose modality is missing enters its genome network as zeros: it counts in BatchNorm, not in the loss.
        """
        images, genomes = [], []
        for number, features in enumerate(modality_slices(self.reader.spec.modalities)):
            values = torch.where(present[:, number, None], x_BF[:, features], 0.0).to(features_BD.dtype)
            images.append(_wide(self.image_projections[number](features_BD)))
            genomes.append(_wide(self.genome_projections[number](values)))
        return images, genomes


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def contig_loss(image_ND: Tensor, genome_ND: Tensor, temperature: float, alpha: float, present_N: Tensor) -> Tensor:
    """Cross-entropy from images to genomes, and from genomes to images.

    Parameters
    ----------
    image_ND, genome_ND : Tensor, (N, D)
        One vector per sample; not normalised.
    temperature, alpha : float
    present_N : Tensor of bool, (N,)
        The rows that take part; the others are no candidates either.

    Returns
    -------
    Tensor, scalar
        ``alpha CE(image to genome) + (1 - alpha) CE(genome to image)``, means over the rows that take part; 0 where
        none or one does. Equal vectors give ln N.
    """
    logits = similarities(image_ND, genome_ND, temperature)
    own = torch.arange(len(logits), device=logits.device)
    weights: Sequence[tuple[float, Tensor]] = ((alpha, logits), (1 - alpha, logits.T))
    loss = logits.new_zeros(())
    for weight, rows in weights:
        # No choice of rows, which would have to ask the device for their number. Rows that are not there are made
        # finite, so that their gradient is 0, not NaN.
        candidates = rows.masked_fill(~present_N, float("-inf"))
        candidates = torch.where(present_N[:, None], candidates, 0.0)
        errors = cross_entropy(candidates, own, reduction="none")
        loss = loss + weight * (errors * present_N).sum() / present_N.sum().clamp(min=1)
    return loss
