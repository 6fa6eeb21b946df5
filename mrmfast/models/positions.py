"""Fixed positions of patches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def sincos_positions(grid: int, width: int, first: Literal["column", "row"] = "column") -> Tensor:
    """Return a sine-cosine table of patches in raster order, (grid^2, width), float64.

    Parameters
    ----------
    grid : int
        Patches a side.
    width : int
        A multiple of 4. Each half holds the sines, then the cosines, of one coordinate.
    first : {"column", "row"}
        The coordinate of the first half: the column in MAE's code, the row in MoCo v3's and MultiMAE's.
    """
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    half = torch.cat([angle.sin(), angle.cos()], 1)  # (grid, width / 2)
    column, row = half.expand(grid, -1, -1), half[:, None].expand(-1, grid, -1)
    return torch.cat([column, row] if first == "column" else [row, column], 2).flatten(0, 1)
