"""The compiled warps of ``warp.c``, and what replaces them without a compiler."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from mrmfast import native
from mrmfast.batch import PIXEL_MEAN, PIXEL_STD
from mrmfast.data.images.reference import warp_mask_reference
from mrmfast.native import POINTER, SSIZE

SPARE = 32  # bytes after a decoded image that the warp may read
FLAGS = ("-O3", "-march=native", "-std=c11", "-ffp-contract=off")
# Normalised = byte * scale + shift: three scales, then three shifts.
NORMAL = np.concatenate([1 / (255 * np.array(PIXEL_STD)), -np.array(PIXEL_MEAN) / PIXEL_STD]).astype(np.float32)
NORMAL_ADDRESS = NORMAL.ctypes.data


def warp(image: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> None:
    """Warp one square image into `out`; the last of the resizing (up or down by ``FUSED``) is part of it.

    Parameters
    ----------
    image : ndarray, uint8, (S, S, 3)
        The start of a buffer with ``SPARE`` bytes after it.
    matrix : ndarray, float32, (2, 3)
        From output to input pixels, both of an image of the output's size (:mod:`mrmfast.data.images.augment`).
    out : ndarray, uint8, (size, size, 3), or float32, (3, size, size)
        Filled: bilinear between pixel centres, black outside; floats normalised by ``PIXEL_MEAN`` and ``PIXEL_STD``.
    """
    side, size, floats = len(image), out.shape[1], out.dtype == np.float32
    kernel = library()
    if side != size:
        matrix = matrix * np.float32(side / size)
    if kernel is not None:
        line = np.empty(size * 3 + SPARE, dtype=np.uint8)
        scale = NORMAL_ADDRESS if floats else None
        kernel.warp(image.ctypes.data, side, side, matrix.ctypes.data, out.ctypes.data, size, scale, line.ctypes.data)
        return
    at_corners = matrix.astype(np.float64)  # OpenCV counts from pixel centres
    at_corners[:, 2] += (at_corners[:, :2].sum(1) - 1) / 2
    pixels = cv2.warpAffine(image, at_corners, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    out[:] = pixels.transpose(2, 0, 1) * NORMAL[:3, None, None] + NORMAL[3:, None, None] if floats else pixels


def warp_mask(mask: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> None:
    """Warp a mask into `out`: the bytes of :func:`mrmfast.data.images.reference.warp_mask_reference`.

    Parameters
    ----------
    mask : ndarray, uint8, (H, W, C), contiguous
    matrix : ndarray, float32, (2, 3), contiguous
        From output to input pixels, both of an image of the output's size.
    out : ndarray, uint8, (C, size, size), contiguous
        Filled: nearest neighbour, 255 outside.
    """
    height, width, channels = mask.shape
    kernel, size = library(), out.shape[1]
    if kernel is None:
        out[:] = warp_mask_reference(mask, matrix, size)
    else:
        kernel.warp_mask(mask.ctypes.data, width, height, channels, matrix.ctypes.data, out.ctypes.data, size)


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled warps; None, and a warning, where they cannot be built."""
    return native.load(
        Path(__file__).with_name("warp.c"),
        FLAGS,
        name="warp",
        otherwise="Augmentation takes three times as long",
        functions={
            "warp": ((POINTER, SSIZE, SSIZE, POINTER, POINTER, SSIZE, POINTER, POINTER), None),
            "warp_group": ((SSIZE, POINTER, POINTER, POINTER, SSIZE, SSIZE, POINTER, POINTER), None),
            "warp_mask": ((POINTER, SSIZE, SSIZE, SSIZE, POINTER, POINTER, SSIZE), None),
        },
    )
