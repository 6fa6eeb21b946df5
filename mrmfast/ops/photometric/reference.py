"""Changes of colour in plain PyTorch: brightness, contrast, saturation, hue, grey, blur, solarise, in this order.

Each function takes pixels in 0..255 of any floating type, shape (B, 3, H, W), with one parameter a sample, and nothing
is rounded between them. A sample whose parameter says "no change" keeps its values up to the rounding of floats. The
formulas are in ``README.md`` beside this file.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mrmfast.batch import PHOTOMETRIC, Photometric

LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601), as in torchvision
WHITE = 255.0
SIGMAS = 3.0  # radius of the blur in standard deviations; what is beyond weighs 0.3 % of the whole


def photometric(pixels_BCHW: Tensor, parameters_BK: Tensor, recipe: Photometric) -> Tensor:
    """Apply all changes of a recipe.

    Parameters
    ----------
    pixels_BCHW : Tensor, floating, (B, 3, H, W)
        RGB in 0..255.
    parameters_BK : Tensor, (B, K)
        Columns as in ``mrmfast.batch.PHOTOMETRIC``.
    recipe : Photometric
        What can happen at all: the rest is not computed.

    Returns
    -------
    Tensor, floating, (B, 3, H, W)
        In 0..255, not rounded.
    """
    column = dict(zip(PHOTOMETRIC, parameters_BK.to(pixels_BCHW.dtype).unbind(1), strict=True))
    if recipe.jitter and recipe.brightness:
        pixels_BCHW = brightness(pixels_BCHW, column["brightness"])
    if recipe.jitter and recipe.contrast:
        pixels_BCHW = contrast(pixels_BCHW, column["contrast"])
    if recipe.jitter and recipe.saturation:
        pixels_BCHW = saturation(pixels_BCHW, column["saturation"])
    if recipe.jitter and recipe.hue:
        pixels_BCHW = hue(pixels_BCHW, column["hue"])
    if recipe.grey:
        pixels_BCHW = torch.where(_per_sample(column["grey"]) > 0, _grey(pixels_BCHW), pixels_BCHW)
    if recipe.blur:
        pixels_BCHW = blur(pixels_BCHW, column["blur"], math.ceil(SIGMAS * recipe.blur_sigma[1]))
    if recipe.solarise:
        pixels_BCHW = solarise(pixels_BCHW, column["solarise"], recipe.solarise_threshold)
    return pixels_BCHW


def brightness(pixels_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Multiply by a factor."""
    return (pixels_BCHW * _per_sample(factor_B)).clamp(0, WHITE)


def contrast(pixels_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Move away from the mean grey of the image (factor above 1), or toward it."""
    mean_B111 = _grey(pixels_BCHW).mean((1, 2, 3), keepdim=True)
    return _blend(pixels_BCHW, mean_B111, factor_B)


def saturation(pixels_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Move each pixel away from its own grey (factor above 1), or toward it."""
    return _blend(pixels_BCHW, _grey(pixels_BCHW), factor_B)


def hue(pixels_BCHW: Tensor, shift_B: Tensor) -> Tensor:
    """Turn the hue by a share of the colour circle; value and chroma of HSV stay."""
    red, green, blue = pixels_BCHW.unbind(1)
    value, chroma = pixels_BCHW.amax(1), pixels_BCHW.amax(1) - pixels_BCHW.amin(1)
    divisor = torch.where(chroma > 0, chroma, 1)  # grey has no hue: any serves, since it is multiplied by the chroma
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    turned = sector + 6 * shift_B[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        position = (offset + turned) % 6
        channels.append(value - chroma * torch.minimum(position, 4 - position).clamp(0, 1))
    return torch.stack(channels, 1)


def blur(pixels_BCHW: Tensor, sigma_B: Tensor, radius: int) -> Tensor:
    """Blur by a Gaussian with a standard deviation a sample (0: not at all); the border is mirrored.

    Parameters
    ----------
    pixels_BCHW : Tensor
    sigma_B : Tensor
        Pixels.
    radius : int
        Pixels to each side that the Gaussian reaches.
    """
    samples, channels, height, width = pixels_BCHW.shape
    radius = min(radius, height - 1, width - 1)  # a mirror cannot show more than there is
    offset = torch.arange(-radius, radius + 1, device=sigma_B.device, dtype=sigma_B.dtype)
    weight = torch.exp(-0.5 * (offset / sigma_B.clamp(min=1e-3)[:, None]).square())
    weight = (weight / weight.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    # One channel a group, so that each sample has its own kernel.
    flat = pixels_BCHW.reshape(1, samples * channels, height, width)
    flat = functional.pad(flat, [radius] * 4, mode="reflect")
    flat = functional.conv2d(flat, weight[:, None, :, None], groups=samples * channels)
    flat = functional.conv2d(flat, weight[:, None, None, :], groups=samples * channels)
    return flat.reshape(samples, channels, height, width)


def solarise(pixels_BCHW: Tensor, chosen_B: Tensor, threshold: int) -> Tensor:
    """Invert what rounds to `threshold` or more, in the samples that are chosen."""
    inverted = (_per_sample(chosen_B) > 0) & (pixels_BCHW.round() >= threshold)
    return torch.where(inverted, WHITE - pixels_BCHW, pixels_BCHW)


def _per_sample(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]


def _grey(pixels_BCHW: Tensor) -> Tensor:
    red, green, blue = pixels_BCHW.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def _blend(pixels_BCHW: Tensor, other: Tensor, factor_B: Tensor) -> Tensor:
    factor = _per_sample(factor_B)
    return (factor * pixels_BCHW + (1 - factor) * other).clamp(0, WHITE)
