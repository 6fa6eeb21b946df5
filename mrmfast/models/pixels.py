"""Pixels in and out of the model: ImageNet normalisation and MAE's patch order."""

from __future__ import annotations

import torch
from torch import Tensor

from mrmfast.batch import PIXEL_MEAN, PIXEL_STD


def normalise(image_BCHW: Tensor) -> Tensor:
    """uint8 RGB, (B, 3, S, S), to float32 with ImageNet's mean and standard deviation; floats are so already."""
    if image_BCHW.is_floating_point():
        return image_BCHW
    mean = torch.tensor(PIXEL_MEAN, device=image_BCHW.device)[:, None, None]
    std = torch.tensor(PIXEL_STD, device=image_BCHW.device)[:, None, None]
    return (image_BCHW.float() / 255 - mean) / std


def denormalise(image_BCHW: Tensor) -> Tensor:
    """Undo :func:`normalise`: float to uint8 RGB, (B, 3, S, S)."""
    mean = torch.tensor(PIXEL_MEAN, device=image_BCHW.device)[:, None, None]
    std = torch.tensor(PIXEL_STD, device=image_BCHW.device)[:, None, None]
    return ((image_BCHW.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def patchify(image_BCHW: Tensor, patch: int) -> Tensor:
    """(B, C, S, S) to (B, patches, patch * patch * C) in (row, column, channel) order (MAE)."""
    x = image_BCHW.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))  # B C gh p gw q
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(x_BNP: Tensor, patch: int) -> Tensor:
    """Undo :func:`patchify` for square RGB images: (B, patches, P) to (B, 3, S, S)."""
    grid = round(x_BNP.shape[1] ** 0.5)
    x = x_BNP.unflatten(1, (grid, grid)).unflatten(3, (patch, patch, 3))  # B gh gw p q C
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
