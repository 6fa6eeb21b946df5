"""The genome as M3AE's second modality: tokens with masks, and predictions of what was masked."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor, nn

from mrmfast.models.fusion import EPSILON
from mrmfast.models.genome_encoder import GenomeInput, GenomeTokens, SNNLayer
from mrmfast.models.grouped_linear import GroupedLinearBack
from mrmfast.objectives.genome import OUTPUTS, genome_errors, modality_slices


class GenomeStream(nn.Module):
    """Encoder of genome tokens, a class token first, and the head that predicts features.

    Parameters
    ----------
    genome : GenomeInput
    width : int
        Of the tokens that it makes.
    fused : int
        Of the tokens that it predicts from.

    Attributes
    ----------
    width : int
    maskable : int
        M, tokens without the class token.
    """

    def __init__(self, genome: GenomeInput, width: int, fused: int) -> None:
        super().__init__()
        self.spec, self.width, self.maskable = genome.spec, width, len(genome.spec.groups)
        self.tokens = GenomeTokens(genome.spec.groups, width, genome.alpha_dropout, with_mask_token=True)
        self.class_token = nn.Embedding(1, width)
        nn.init.trunc_normal_(self.class_token.weight, std=0.02)
        self.layers = nn.ModuleList(SNNLayer(width, genome.alpha_dropout) for _ in range(genome.layers))
        self.transform = nn.Sequential(nn.Linear(fused, fused), nn.GELU(), nn.LayerNorm(fused, eps=EPSILON))
        self.outputs = [OUTPUTS[encoding] for _, encoding, count in genome.spec.modalities for _ in range(count)]
        remaining = iter(self.outputs)
        self.head = GroupedLinearBack([sum(islice(remaining, count)) for count in genome.spec.groups], fused)

    def forward(self, genome: tuple[Tensor, Tensor], masked_BM: Tensor | None = None) -> Tensor:
        """Encode values, those of masked tokens hidden: (B, F) to (B, 1 + M, width)."""
        tokens = self.tokens(genome[0], masked_BM)
        for layer in self.layers:
            tokens = layer(tokens)
        first = self.class_token(torch.zeros(len(tokens), 1, dtype=torch.int64, device=tokens.device))
        return torch.cat([first, tokens], 1)

    def known(self, genome: tuple[Tensor, Tensor]) -> Tensor:
        """Return which tokens something was observed of, (B, 1 + M); the class token always counts as known."""
        parts = genome[1].split(list(self.spec.groups), 1)
        known_BM = torch.stack([part.any(1) for part in parts], 1)
        return torch.cat([torch.ones_like(known_BM[:, :1]), known_BM], 1)

    def choose_masked(self, genome: tuple[Tensor, Tensor], noise_BM: Tensor, ratio: float) -> Tensor:
        """Mask a share of the known tokens of each sample, rounded, at least one: (B, M)."""
        known_BM = self.known(genome)[:, 1:]
        counts_B = (known_BM.sum(1) * ratio).round().clamp(min=1)
        ranks_BM = (noise_BM + 2 * ~known_BM).argsort(1).argsort(1)
        return (ranks_BM < counts_B[:, None]) & known_BM

    def predict(self, tokens_BMD: Tensor) -> Tensor:
        """Predict features from fused tokens: (B, 1 + M, fused) to (B, sum of outputs)."""
        return self.head(self.transform(tokens_BMD[:, 1:]))

    def loss(self, predicted_BO: Tensor, genome: tuple[Tensor, Tensor], masked_BM: Tensor) -> Tensor:
        """Mean error over the masked features of each modality, then over the modalities that have some."""
        x_BF, observed_BF = genome
        sizes = torch.tensor(self.spec.groups, device=masked_BM.device)
        counted_BF = observed_BF & masked_BM.repeat_interleave(sizes, 1, output_size=self.spec.n_features)
        means, present = [], []
        modalities = self.spec.modalities
        errors = genome_errors(predicted_BO, x_BF, observed_BF, modalities)
        for error_BF, features in zip(errors, modality_slices(modalities), strict=True):
            counted = counted_BF[:, features]
            means.append((error_BF * counted).sum() / counted.sum().clamp(min=1))
            present.append(counted.any())
        return torch.stack(means).sum() / torch.stack(present).sum().clamp(min=1)
