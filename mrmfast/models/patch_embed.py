"""Pixels in and out of the model: ImageNet normalisation, alone and inside the patch embedding; MAE's patch order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mrmfast.batch import PIXEL_MEAN, PIXEL_STD


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device)[:, None, None]


def normalise(image_BCHW: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 RGB, (B, 3, S, S), to floats with ImageNet's mean and standard deviation; floats are so already."""
    if image_BCHW.is_floating_point():
        return image_BCHW.to(dtype)
    mean, std = _per_channel(PIXEL_MEAN, image_BCHW), _per_channel(PIXEL_STD, image_BCHW)
    # In place, as the result is new: one tensor instead of three.
    return image_BCHW.to(dtype).div_(255).sub_(mean).div_(std)


def denormalise(image_BCHW: Tensor) -> Tensor:
    """Undo :func:`normalise`: float to uint8 RGB, (B, 3, S, S)."""
    mean, std = _per_channel(PIXEL_MEAN, image_BCHW), _per_channel(PIXEL_STD, image_BCHW)
    return ((image_BCHW.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


class PixelProjection(nn.Module):
    """A ViT's patch projection that takes uint8 pixels, or normalised ones as any convolution does.

    Mean and standard deviation are folded into weights and bias at each call, so gradients reach the parameters, which
    stay those of the convolution that it replaces. Pixels are first centred by whole numbers: that is exact in bf16 too
    (integers to 256), and a pixel near the mean then multiplies a small number, as it does when it is normalised.

    Parameters
    ----------
    convolution : Conv2d
        Three channels in, stride equal to the kernel; its parameters are taken over.
    """

    centre: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        assert convolution.in_channels == 3 and convolution.stride == convolution.kernel_size
        self.stride = convolution.stride
        self.weight, self.bias = convolution.weight, convolution.bias
        centre = torch.tensor([round(255 * mean) for mean in PIXEL_MEAN], dtype=torch.int16)
        self.register_buffer("centre", centre[:, None, None], persistent=False)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, S, S), uint8 or normalised, to (B, D, S / patch, S / patch)."""
        weight, bias = self.weight, self.bias
        if image_BCHW.dtype == torch.uint8:
            bias = weight.new_zeros(len(weight)) if bias is None else bias
            # Scalars per channel: a tensor of constants would be cast with the model, or copied to the GPU each time.
            planes = [plane / (255 * std) for plane, std in zip(weight.unbind(1), PIXEL_STD, strict=True)]
            for plane, mean in zip(planes, PIXEL_MEAN, strict=True):
                bias = bias + (round(255 * mean) - 255 * mean) * plane.sum((1, 2))
            weight = torch.stack(planes, 1)
            image_BCHW = image_BCHW.to(weight.dtype) - self.centre.to(weight.dtype)
        return nn.functional.conv2d(image_BCHW.to(weight.dtype), weight, bias, self.stride)


def image_as_patches(image_BCHW: Tensor, patch: int) -> Tensor:
    """View (B, C, S, S) as (B, C, rows, patch, columns, patch): no copy."""
    return image_BCHW.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))


def patches_as_image(x_BNP: Tensor, patch: int) -> Tensor:
    """View the patches of a square RGB image, (B, patches, P), with the axes of :func:`image_as_patches`: no copy."""
    grid = round(x_BNP.shape[1] ** 0.5)
    x = x_BNP.unflatten(1, (grid, grid)).unflatten(3, (patch, patch, 3))  # B gh gw p q C
    return x.permute(0, 5, 1, 3, 2, 4)


def patchify(image_BCHW: Tensor, patch: int) -> Tensor:
    """(B, C, S, S) to (B, patches, patch * patch * C) in (row, column, channel) order (MAE)."""
    return image_as_patches(image_BCHW, patch).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
