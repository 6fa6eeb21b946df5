"""Reconstruction errors of image and genome (method page, reconstruction): means over elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from mrmfast.models.patch_embed import denormalise, image_as_patches, normalise, patches_as_image

# MAE (He et al. 2022) keeps a flat patch from being divided by zero with this.
_EPSILON = 1e-6


def _target(image_BCHW: Tensor, patch: int, norm_pixels: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what is to be predicted, (B, 3, rows, patch, columns, patch), and the statistics of each patch."""
    pixels = image_as_patches(normalise(image_BCHW), patch)
    if not norm_pixels:
        return pixels, None, None
    variance, mean = torch.var_mean(pixels, (1, 3, 5), keepdim=True)
    scale = (variance + _EPSILON).sqrt()
    return (pixels - mean) / scale, mean, scale


def image_error(predicted_BNP: Tensor, image_BCHW: Tensor, patch: int, norm_pixels: bool = False) -> Tensor:
    """Mean squared error over all pixels of all patches; nothing was masked at the input [ours].

    Parameters
    ----------
    predicted_BNP : Tensor, (B, patches, patch * patch * 3)
        Normalised pixels in MAE's order; compared as a view with the image's axes, so no patch is copied.
    image_BCHW : Tensor, uint8, (B, 3, S, S)
    patch : int
    norm_pixels : bool
        Standardise each patch of the target by its own mean and standard deviation.
    """
    target, _, _ = _target(image_BCHW, patch, norm_pixels)
    return mse_loss(patches_as_image(predicted_BNP.float(), patch), target)


def pictures(predicted_BNP: Tensor, image_BCHW: Tensor, patch: int, norm_pixels: bool = False) -> Tensor:
    """Turn predictions into uint8 images, (B, 3, S, S); with `norm_pixels`, each patch gets the image's statistics."""
    pixels = patches_as_image(predicted_BNP.float(), patch)
    _, mean, scale = _target(image_BCHW, patch, norm_pixels)
    if mean is not None and scale is not None:
        pixels = pixels * scale + mean
    return denormalise(pixels.flatten(4, 5).flatten(2, 3))


def genome_error(
    predicted_BF: Tensor, x_BF: Tensor, observed_BF: Tensor, kinds: Sequence[tuple[str, str, int]], bce: bool = False
) -> Tensor:
    """Mean error over observed features; a missing one carries no loss [ours].

    Parameters
    ----------
    predicted_BF, x_BF : Tensor, (B, F)
    observed_BF : Tensor, bool, (B, F)
    kinds : sequence of (modality, kind, n_features)
        As in :class:`mrmfast.batch.GenomeSpec`.
    bce : bool
        Take predictions of binary features as logits, and their cross-entropy instead of the squared error.

    Returns
    -------
    Tensor, scalar
        0 where nothing was observed.
    """
    predicted_BF = predicted_BF.float()
    error_BF = (predicted_BF - x_BF).square()
    if bce:
        parts, start = [], 0
        for _, kind, count in kinds:
            here = slice(start, start + count)
            part = error_BF[:, here]
            if kind == "binary":
                part = binary_cross_entropy_with_logits(predicted_BF[:, here], x_BF[:, here], reduction="none")
            parts.append(part)
            start += count
        error_BF = torch.cat(parts, 1)
    return (error_BF * observed_BF).sum() / observed_BF.sum().clamp(min=1)
