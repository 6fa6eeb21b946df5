"""The readable reference of all image backends: decode, average down, warp each view; nearest neighbour for masks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mrmfast.data.images.augment import needed_side
from mrmfast.data.images.backend import FUSED
from mrmfast.data.images.masks import UNKNOWN, decode_mask
from mrmfast.formats.jpeg import decode_jpeg


def decode_reference(jpeg: np.ndarray, matrices: Sequence[np.ndarray], sizes: Sequence[int]) -> list[np.ndarray]:
    """Compute all views of one sample.

    Parameters
    ----------
    jpeg : ndarray of uint8
    matrices : sequence of ndarray, (2, 3)
        One per view: :func:`mrmfast.data.images.augment.warp_matrices`.
    sizes : sequence of int
        Side of each view, pixels.

    Returns
    -------
    list of ndarray, uint8, (size, size, 3)

    Raises
    ------
    ValueError
        Not a JPEG.
    """
    image = decode_jpeg(jpeg, tolerant=True)
    views = []
    for matrix, size in zip(matrices, sizes, strict=True):
        height, width = image.shape[:2]
        needed = int(needed_side(matrix[None], size)[0])
        reduced = image
        if height != width or height > FUSED * needed:
            larger = height >= needed and width >= needed
            reduced = cv2.resize(image, (needed, needed), interpolation=cv2.INTER_AREA if larger else cv2.INTER_LINEAR)
        views.append(warp_reference(reduced, matrix * np.float32(len(reduced) / size), size))
    return views


def warp_reference(image: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Warp an image by bilinear interpolation in float64, black outside.

    Parameters
    ----------
    image : ndarray, uint8, (H, W, 3)
    matrix : ndarray, (2, 3)
        From output to input pixels; pixel centres lie at halves.
    size : int

    Returns
    -------
    ndarray, uint8, (size, size, 3)
    """
    rows, columns = np.mgrid[:size, :size] + 0.5
    x, y = (line[0] * columns + line[1] * rows + line[2] - 0.5 for line in matrix.astype(np.float64))
    framed = np.pad(image.astype(np.float64), ((1, 2), (1, 2), (0, 0)))
    left = np.clip(np.floor(x), -1, image.shape[1]).astype(int)
    top = np.clip(np.floor(y), -1, image.shape[0]).astype(int)
    across, down = np.clip(x - left, 0, 1)[..., None], np.clip(y - top, 0, 1)[..., None]
    above = framed[top + 1, left + 1] * (1 - across) + framed[top + 1, left + 2] * across
    below = framed[top + 2, left + 1] * (1 - across) + framed[top + 2, left + 2] * across
    inside = (x > -1) & (x < image.shape[1]) & (y > -1) & (y < image.shape[0])
    return np.floor((above * (1 - down) + below * down) * inside[..., None] + 0.5).astype(np.uint8)


def masks_reference(
    pngs: Sequence[np.ndarray | None], channels: Sequence[int], matrix: np.ndarray, size: int
) -> np.ndarray:
    """Warp all masks of one sample by the matrix of its first view.

    Parameters
    ----------
    pngs : sequence of ndarray of uint8, or None
        Each mask's bytes; None where the sample has no such mask.
    channels : sequence of int
        Of each mask.
    matrix : ndarray of float32, (2, 3)
    size : int

    Returns
    -------
    ndarray, uint8, (C, size, size)
        The channels of all masks; 255 outside and where there is no mask.
    """
    planes = []
    for png, count in zip(pngs, channels, strict=True):
        mask = None if png is None else decode_mask(png, count)
        if mask is None:
            planes.append(np.full((count, size, size), UNKNOWN, np.uint8))
        else:
            planes.append(warp_mask_reference(mask, matrix, size))
    return np.concatenate(planes)


def warp_mask_reference(mask: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """Warp a mask by nearest neighbour: an output pixel takes the input pixel that its centre falls into.

    Parameters
    ----------
    mask : ndarray, uint8, (H, W, C)
    matrix : ndarray of float32, (2, 3)
        From output to input pixels, both of an image of the output's size; scaled to H and W in float64.
    size : int

    Returns
    -------
    ndarray, uint8, (C, size, size)
        255 outside.

    Examples
    --------
    A mask of 2 x 2, enlarged to 4 x 4 and moved one input pixel to the left:

    >>> mask = np.array([[1, 2], [3, 4]], np.uint8)[..., None]
    >>> warp_mask_reference(mask, np.float32([[1, 0, 2], [0, 1, 0]]), 4)[0]
    array([[  2,   2, 255, 255],
           [  2,   2, 255, 255],
           [  4,   4, 255, 255],
           [  4,   4, 255, 255]], dtype=uint8)
    """
    height, width, channels = mask.shape
    rows, columns = np.mgrid[:size, :size] + 0.5
    across, down = matrix.astype(np.float64)
    # The kernel in warp.c does the same operations in the same order, so that both give the same bytes.
    x = np.floor((across[0] * columns + across[1] * rows + across[2]) * (width / size)).astype(np.int64)
    y = np.floor((down[0] * columns + down[1] * rows + down[2]) * (height / size)).astype(np.int64)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    out = np.full((channels, size, size), UNKNOWN, np.uint8)
    out[:, inside] = mask[y[inside], x[inside]].T
    return out
