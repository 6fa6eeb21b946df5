"""Which tokens are visible: a share for each modality, drawn per sample, and a fixed number of tokens in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """All that is random in a forward pass.

    Attributes
    ----------
    shares : Tensor, (B, modalities)
        Each modality's share of the visible tokens; a row adds up to 1.
    noises : tuple of Tensor, (B, tokens of the modality) each
    final : Tensor, (B, N)
        Decides between tokens where the shares, rounded, give too many or too few.
    """

    shares: Tensor
    noises: tuple[Tensor, ...]
    final: Tensor

    def to(self, device: torch.device) -> Draws:
        """Copy to a device."""
        noises = tuple(noise.to(device, non_blocking=True) for noise in self.noises)
        return Draws(self.shares.to(device, non_blocking=True), noises, self.final.to(device, non_blocking=True))


def draw(samples: int, tokens: Sequence[int], alphas: Sequence[float], seed: int) -> Draws:
    """Draw shares from a Dirichlet distribution, and uniform noise: a function of the seed, on the CPU.

    Parameters
    ----------
    samples : int
    tokens : sequence of int
        Of each modality.
    alphas : sequence of float
        Parameters of the Dirichlet distribution.
    seed : int
    """
    generator = np.random.default_rng(seed)
    shares = torch.from_numpy(generator.dirichlet(alphas, samples))
    noises = tuple(torch.from_numpy(generator.random((samples, count), np.float32)) for count in tokens)
    return Draws(shares, noises, torch.from_numpy(generator.random((samples, sum(tokens)), np.float32)))


def choose_visible(draws: Draws, kept: int, available_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose the visible tokens of each sample.

    Parameters
    ----------
    draws : Draws
    kept : int
        K, visible tokens of a sample; exact, whatever the shares ask for.
    available_BN : Tensor of bool, (B, N), optional
        Tokens that the sample has; the others are visible only where K are not to be had without them. All by default.

    Returns
    -------
    kept_BK : Tensor of int64, (B, K)
        The visible tokens, in the order in which the encoder gets them.
    restore_BN : Tensor of int64, (B, N)
        The place of each token in the order of all; the visible ones have those below K.
    """
    asked = (draws.shares * kept).round()  # half to even, as published
    # Published: position j is asked for where the VALUE of the permutation at j is below the number, not where the rank
    # of its noise is. Both are uniform.
    masked = [noise.argsort(1) >= asked[:, number, None] for number, noise in enumerate(draws.noises)]
    rank_BN = torch.cat(masked, 1) + draws.final
    if available_BN is not None:
        rank_BN = rank_BN + 2 * ~available_BN
    order_BN = rank_BN.argsort(1)
    return order_BN[:, :kept], order_BN.argsort(1)
