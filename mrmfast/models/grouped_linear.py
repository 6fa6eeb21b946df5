"""Many linear maps of different sizes as one batched matrix product.

A genome token has 20 to 2,000 features of its own. Padding every group to the largest would triple the work, a loop
would launch 48 small products; cutting the groups into tiles of equal size and adding up the tiles of a group does
neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _tiles(groups: Sequence[int], tile: int) -> tuple[Tensor, list[int]]:
    """Cut features into tiles; on the CPU, also where parameters are counted on the meta device.

    Returns
    -------
    feature_of_slot : Tensor of int64, (T, tile)
        Which feature sits where; F (one past the end) marks padding.
    group_of_tile : list of int, T of them
    """
    total, start = sum(groups), 0
    slots, owner = [], []
    for number, size in enumerate(groups):
        for offset in range(0, size, tile):
            features = torch.arange(start + offset, start + min(offset + tile, size), device="cpu")
            slots.append(nn.functional.pad(features, (0, tile - len(features)), value=total))
            owner.append(number)
        start += size
    return torch.stack(slots), owner


class _Grouped(nn.Module):
    """What both directions share: tiles, weights, initialisation."""

    feature_of_slot: Tensor
    group_of_tile: Tensor

    def __init__(self, groups: Sequence[int], width: int, fan_in: Sequence[int], tile: int) -> None:
        super().__init__()
        if not groups or min(groups) < 1:
            raise ValueError(f"every group needs at least one feature; got {list(groups)}")
        self.groups, self.n_features = tuple(groups), sum(groups)
        tile = min(tile, max(groups))
        slots, owner = _tiles(groups, tile)
        self.register_buffer("feature_of_slot", slots, persistent=False)
        self.register_buffer("group_of_tile", torch.tensor(owner), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(slots), tile, width))
        with torch.no_grad():
            # LeCun normal (Klambauer et al. 2017, section 3): variance 1 / fan-in keeps SELU self-normalising.
            self.weight.normal_()
            scale = torch.tensor([1 / math.sqrt(fan_in[g]) for g in owner], device=self.weight.device)
            self.weight.mul_(scale[:, None, None])
            self.weight.masked_fill_((slots == self.n_features)[..., None].to(self.weight.device), 0.0)


class GroupedLinear(_Grouped):
    """A Linear(n_g -> D) per group of features.

    Parameters
    ----------
    groups : sequence of int
        n_g, features per group, in order.
    width : int
        D.
    tile : int
        Features per tile.
    """

    def __init__(self, groups: Sequence[int], width: int, tile: int = 256) -> None:
        super().__init__(groups, width, groups, tile)
        self.bias = nn.Parameter(torch.zeros(len(groups), width))

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) features to (B, groups, D)."""
        padded = nn.functional.pad(x_BF, (0, 1))  # slot F reads zero
        tiles_TBt = padded[:, self.feature_of_slot].transpose(0, 1).to(self.weight.dtype)
        out_TBD = torch.bmm(tiles_TBt, self.weight)
        out_GBD = out_TBD.new_zeros(len(self.groups), *out_TBD.shape[1:]).index_add(0, self.group_of_tile, out_TBD)
        return out_GBD.transpose(0, 1) + self.bias


class GroupedLinearBack(_Grouped):
    """A Linear(D -> n_g) per group: the way back from tokens to features.

    Parameters
    ----------
    groups, width, tile
        As in :class:`GroupedLinear`.
    """

    slot_of_feature: Tensor

    def __init__(self, groups: Sequence[int], width: int, tile: int = 256) -> None:
        super().__init__(groups, width, [width] * len(groups), tile)
        self.bias = nn.Parameter(torch.zeros(self.n_features))
        # Real slots are in the order of the features, since tiles were cut in that order. Places instead of a mask:
        # the number of places is known without asking the device.
        places = (self.feature_of_slot.flatten() < self.n_features).nonzero().flatten()
        self.register_buffer("slot_of_feature", places, persistent=False)

    def forward(self, x_BGD: Tensor) -> Tensor:
        """(B, groups, D) tokens to (B, F) features."""
        tokens_TBD = x_BGD.transpose(0, 1).index_select(0, self.group_of_tile).to(self.weight.dtype)
        out_TBt = torch.bmm(tokens_TBD, self.weight.transpose(1, 2))
        return out_TBt.transpose(0, 1).flatten(1).index_select(1, self.slot_of_feature) + self.bias
