"""Losses that several objectives share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, normalize

from mrmfast.models.patch_embed import denormalise, image_as_patches, normalise, patches_as_image

# MAE (He et al. 2022) keeps a flat patch from being divided by zero with this.
_EPSILON = 1e-6


def similarities(query_ND: Tensor, key_KD: Tensor, temperature: float) -> Tensor:
    """Cosines of all pairs, divided by the temperature: (N, D) and (K, D), not normalised, to (N, K)."""
    return normalize(query_ND, dim=1) @ normalize(key_KD, dim=1).T / temperature


def info_nce(query_BD: Tensor, key_ND: Tensor, temperature: float, own: slice | None = None) -> Tensor:
    """Cross-entropy of each query over all keys (InfoNCE; van den Oord et al. 2018), mean over the queries.

    Parameters
    ----------
    query_BD : Tensor, (B, D)
    key_ND : Tensor, (N, D)
        Of all ranks. Neither is normalised.
    temperature : float
    own : slice, optional
        The keys of the queries' samples, in their order; all by default.
    """
    targets = torch.arange(len(key_ND), device=key_ND.device)[own or slice(None)]
    return cross_entropy(similarities(query_BD, key_ND, temperature), targets)


def nt_xent(first_ND: Tensor, second_ND: Tensor, temperature: float, rows: slice | None = None) -> Tensor:
    """Normalised temperature-scaled cross-entropy of two views (SimCLR; Chen et al. 2020).

    For a sample of one view the candidates are all samples of the other view and the other samples of its own; the
    right one is the same sample in the other view.

    Parameters
    ----------
    first_ND, second_ND : Tensor, (N, D)
        One vector per sample and view; not normalised.
    temperature : float
    rows : slice, optional
        The samples whose terms are averaged, all by default; the others are candidates only.

    Returns
    -------
    Tensor, scalar
        Both directions summed, as google-research/simclr computes it: twice the mean over 2 N rows of most ports. Equal
        vectors give 2 ln(2 N - 1).
    """
    own = torch.arange(len(first_ND), device=first_ND.device)
    rows = rows or slice(None)

    def direction(query_ND: Tensor, other_ND: Tensor) -> Tensor:
        across = similarities(query_ND[rows], other_ND, temperature)
        within = similarities(query_ND[rows], query_ND, temperature)
        within = within.masked_fill(own[rows, None] == own, float("-inf"))
        return cross_entropy(torch.cat([across, within], 1), own[rows])

    return direction(first_ND, second_ND) + direction(second_ND, first_ND)


def patch_target(
    image_BCHW: Tensor, patch: int, norm_pixels: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what is to be predicted, and the statistics that standardised each patch.

    Parameters
    ----------
    image_BCHW : Tensor, uint8 or normalised, (B, 3, S, S)
    patch : int
    norm_pixels : bool
    dtype : torch.dtype

    Returns
    -------
    Tensor, (B, 3, rows, patch, columns, patch)
    Tensor or None, mean of each patch
    Tensor or None, standard deviation of each patch
    """
    pixels = image_as_patches(normalise(image_BCHW, dtype), patch)
    if not norm_pixels:
        return pixels, None, None
    variance, mean = torch.var_mean(pixels, (1, 3, 5), keepdim=True)  # unbiased, as MAE's
    scale = (variance + _EPSILON).sqrt()
    return (pixels - mean) / scale, mean, scale


def patch_error(
    predicted_BNP: Tensor, image_BCHW: Tensor, patch: int, norm_pixels: bool, counted_BN: Tensor | None = None
) -> Tensor:
    """Mean squared error of predicted patches.

    Parameters
    ----------
    predicted_BNP : Tensor, (B, patches, patch * patch * 3)
        Normalised pixels in MAE's order; compared as a view with the image's axes, so no patch is copied.
    image_BCHW : Tensor, uint8 or normalised, (B, 3, S, S)
    patch : int
        Pixels a side.
    norm_pixels : bool
        Standardise each patch of the target by its own mean and standard deviation.
    counted_BN : Tensor of bool, (B, patches), optional
        The patches that carry loss; all by default.

    Returns
    -------
    Tensor, scalar
        The mean over the pixels of a patch, then over the patches of the batch.
    """
    if counted_BN is None:
        target, _, _ = patch_target(image_BCHW, patch, norm_pixels, predicted_BNP.dtype)
        return mse_loss(patches_as_image(predicted_BNP, patch), target)
    error_BN = patch_errors(predicted_BNP, image_BCHW, patch, norm_pixels)
    return (error_BN * counted_BN).sum() / counted_BN.sum()


def patch_errors(predicted_BNP: Tensor, image_BCHW: Tensor, patch: int, norm_pixels: bool) -> Tensor:
    """Mean squared error of each patch, (B, patches); see :func:`patch_error`."""
    target, _, _ = patch_target(image_BCHW, patch, norm_pixels, predicted_BNP.dtype)
    return (patches_as_image(predicted_BNP, patch) - target).square().mean((1, 3, 5)).flatten(1)


def mean_over_samples(error_BE: Tensor, counted_BE: Tensor) -> Tensor:
    """Mean over what counts of each sample, then over the samples of which something counts (MultiMAE); else 0.

    Parameters
    ----------
    error_BE : Tensor, (B, E)
    counted_BE : Tensor of bool, (B, E)
    """
    counts_B = counted_BE.sum(1)
    # A division by 0 would hide behind a choice of samples, and make every gradient NaN.
    means_B = (error_BE * counted_BE).sum(1) / counts_B.clamp(min=1)
    return means_B.sum() / (counts_B > 0).sum().clamp(min=1)


def patches_as_pixels(predicted_BNP: Tensor, image_BCHW: Tensor, patch: int, norm_pixels: bool) -> Tensor:
    """Turn predicted patches into uint8 images, (B, 3, S, S).

    With `norm_pixels`, each patch gets the mean and the standard deviation of the image's patch.
    """
    pixels = patches_as_image(predicted_BNP.float(), patch)
    _, mean, scale = patch_target(image_BCHW, patch, norm_pixels, torch.float32)
    if mean is not None and scale is not None:
        pixels = pixels * scale + mean
    return denormalise(pixels.flatten(4, 5).flatten(2, 3))
