"""What MultiMAE knows of a modality: how it becomes tokens, which outputs are predicted of it, and their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mrmfast.batch import ModalitySpec
from mrmfast.models.genome_encoder import GenomeTokens
from mrmfast.models.grouped_linear import GroupedLinearBack
from mrmfast.objectives.genome import OUTPUTS, genome_errors
from mrmfast.objectives.losses import mean_over_samples, patch_errors


class Adapter(nn.Module):
    """One modality.

    Parameters
    ----------
    name : str
    tokens : int
    positions : Tensor, (tokens, decoder width), optional
        Fixed positions in the decoders; learned ones where there are none.
    """

    def __init__(self, name: str, tokens: int, positions: Tensor | None = None) -> None:
        super().__init__()
        self.name, self.tokens, self.positions = name, tokens, positions

    def forward(self, raw: Any) -> Tensor:
        """Embed a modality, positions added: to (B, tokens, D)."""
        raise NotImplementedError

    def heads(self, width: int) -> dict[str, nn.Module]:
        """Return the outputs that are predicted of it, each with a map from the decoder's width."""
        raise NotImplementedError

    def loss(self, output: str, predicted: Tensor, raw: Any, masked_BN: Tensor) -> Tensor:
        """Return the error of an output at the masked tokens."""
        raise NotImplementedError


class ImageAdapter(Adapter):
    """The image, whose tokens the image encoder makes: predicted as it is, and standardised patch by patch.

    Parameters
    ----------
    name : str
        Also that of the first output; the second one is ``norm_NAME``.
    patch, grid : int
    positions : Tensor
    """

    def __init__(self, name: str, patch: int, grid: int, positions: Tensor) -> None:
        super().__init__(name, grid**2, positions)
        self.patch = patch

    def heads(self, width: int) -> dict[str, nn.Module]:
        """Return two maps to the pixels of a patch."""
        return {name: nn.Linear(width, 3 * self.patch**2) for name in (self.name, f"norm_{self.name}")}

    def pixels(self, predicted_BNP: Tensor) -> Tensor:
        """Reorder pixels from the published (channel, row, column) to (row, column, channel); float32 or wider."""
        pixels = predicted_BNP.unflatten(-1, (3, self.patch, self.patch)).movedim(-3, -1).flatten(-3)
        return pixels.to(torch.promote_types(pixels.dtype, torch.float32))

    def loss(self, output: str, predicted: Tensor, raw: Tensor, masked_BN: Tensor) -> Tensor:
        """Return the squared error; `raw`: uint8 or normalised, (B, 3, S, S)."""
        errors_BN = patch_errors(self.pixels(predicted), raw, self.patch, norm_pixels=output != self.name)
        return mean_over_samples(errors_BN, masked_BN)


class GenomeAdapter(Adapter):
    """One modality of the genome: a token per group of features.

    Parameters
    ----------
    spec : ModalitySpec
    groups : sequence of int
        Features per token.
    width : int
        D.
    dropout : float
    """

    groups: Tensor

    def __init__(self, spec: ModalitySpec, groups: Sequence[int], width: int, dropout: float) -> None:
        super().__init__(spec.name, len(groups))
        self.spec = spec
        self.embed = GenomeTokens(groups, width, dropout)
        self.register_buffer("groups", torch.tensor(groups), persistent=False)

    def forward(self, raw: tuple[Tensor, Tensor]) -> Tensor:
        """Embed values; `raw`: values and what of them was observed, each (B, features)."""
        return self.embed(raw[0])

    def heads(self, width: int) -> dict[str, nn.Module]:
        """Return a map from each token to the outputs of its features."""
        outputs = OUTPUTS[self.spec.encoding]
        return {self.name: GroupedLinearBack([outputs * count for count in self.embed.linear.groups], width)}

    def loss(self, output: str, predicted: Tensor, raw: tuple[Tensor, Tensor], masked_BN: Tensor) -> Tensor:
        """Return the error over the observed features of masked tokens (see :func:`genome_errors`)."""
        x_BF, observed_BF = raw
        (errors_BF,) = genome_errors(predicted, x_BF, observed_BF, [self.spec])
        masked_BF = masked_BN.repeat_interleave(self.groups, 1, output_size=self.spec.n_features)
        return mean_over_samples(errors_BF, masked_BF & observed_BF)


def groups_of_modalities(modalities: Sequence[ModalitySpec], groups: Sequence[int]) -> list[list[int]]:
    """Share out the groups of a genome vector among its modalities; no group spans two."""
    shares, rest = [], list(groups)
    for _, _, count in modalities:
        share: list[int] = []
        while sum(share) < count:
            share.append(rest.pop(0))
        assert sum(share) == count, "a group of features spans two modalities"
        shares.append(share)
    return shares
