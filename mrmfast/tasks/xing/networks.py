"""Student and teacher: a head on image features, a gene network, and their gated fusion."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

GENE_WIDTHS = (64, 48, 32)


class PathHead(nn.Module):
    """Feature and logits of an image: Linear, BatchNorm, ReLU; Linear.

    Parameters
    ----------
    width_in, width, classes : int
    """

    def __init__(self, width_in: int, width: int, classes: int) -> None:
        super().__init__()
        self.feature = nn.Sequential(nn.Linear(width_in, width), nn.BatchNorm1d(width), nn.ReLU())
        self.classifier = nn.Linear(width, classes)

    def reset(self) -> None:
        """Draw new weights."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.BatchNorm1d):
                module.reset_parameters()

    def forward(self, pooled_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features, (B, width_in), to (B, width) and (B, classes)."""
        feature = self.feature(pooled_BD)
        return feature, self.classifier(feature)


class GeneNetwork(nn.Module):
    """Feature and logits of gene values: Linear, ELU, AlphaDropout, four times.

    Parameters
    ----------
    genes, width, classes : int
    dropout : float
    hidden : sequence of int
        Widths before the last one.
    """

    def __init__(
        self, genes: int, width: int, classes: int, dropout: float, hidden: Sequence[int] = GENE_WIDTHS
    ) -> None:
        super().__init__()
        widths = [genes, *hidden, width]
        layers = (
            nn.Sequential(nn.Linear(before, after), nn.ELU(), nn.AlphaDropout(dropout))
            for before, after in pairwise(widths)
        )
        self.encoder = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, genes_BG: Tensor) -> tuple[Tensor, Tensor]:
        """Values, (B, genes), to (B, width), not negative, and (B, classes)."""
        feature = self.encoder(genes_BG).relu()
        return feature, self.classifier(feature)


class GatedFusion(nn.Module):
    """Kronecker product of two gated features (Pathomic Fusion; Chen et al. 2020).

    Parameters
    ----------
    width : int
        Of both features, and of the fused one.
    dropout : float
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(2))
        self.gates = nn.ModuleList(nn.Bilinear(width, width, width) for _ in range(2))
        self.out = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout)) for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)
        self.encoders = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
                for size in ((width + 1) ** 2, width)
            )
        )

    def forward(self, path_BD: Tensor, gene_BD: Tensor) -> Tensor:
        """Fuse two features, (B, width) each."""
        a, b = path_BD.relu(), gene_BD.relu()
        gated = [
            out(gate(a, b).sigmoid() * hidden(own))
            for own, hidden, gate, out in zip((a, b), self.hidden, self.gates, self.out, strict=True)
        ]
        first, second = (torch.cat([x, torch.ones_like(x[:, :1])], 1) for x in gated)
        product = torch.einsum("bi,bj->bij", first, second).flatten(1)
        fused: Tensor = self.encoders(self.dropout(product))
        return fused


class TeacherOutput(NamedTuple):
    """Fused feature, and the logits of the fusion and of both branches."""

    feature: Tensor
    logits: Tensor
    path_logits: Tensor
    gene_logits: Tensor


class FusionTeacher(nn.Module):
    """Image and genes to fused feature and logits.

    Parameters
    ----------
    path : Module
        Image to feature, (B, width), and logits: :class:`PathHead`, after an encoder or not.
    genes, width, classes : int
    dropout : float
    """

    def __init__(self, path: nn.Module, genes: int, width: int, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.path = path
        self.gene = GeneNetwork(genes, width, classes, dropout)
        self.fusion = GatedFusion(width, dropout)
        self.classifier = nn.Linear(width, classes)

    def forward(self, image: Tensor, genes_BG: Tensor) -> TeacherOutput:
        """Fuse; the branches learn from their own losses alone, as published."""
        (path, path_logits), (gene, gene_logits) = self.path(image), self.gene(genes_BG)
        fused = self.fusion(path.detach(), gene.detach())
        return TeacherOutput(fused, self.classifier(fused), path_logits, gene_logits)
