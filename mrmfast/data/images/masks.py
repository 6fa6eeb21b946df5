"""Decoding of masks: PNG with one channel per structure, 255 where the label is unknown."""

from __future__ import annotations

import cv2
import numpy as np

from mrmfast.formats.jpeg import LARGEST
from mrmfast.formats.masks import mask_channels

UNKNOWN = 255


def mask_shape(png: np.ndarray) -> tuple[int, int, int] | None:
    """Return height, width and channels of a PNG's header; None if it cannot be a mask (:func:`mask_channels`)."""
    header = png[:33].tobytes()
    channels = mask_channels(header + png[-12:].tobytes())
    if channels is None:
        return None
    width, height = (int.from_bytes(header[start : start + 4], "big") for start in (16, 20))
    return (height, width, channels) if 0 < width * height <= LARGEST else None


def decode_mask(png: np.ndarray, channels: int) -> np.ndarray | None:
    """Decode the PNG of a mask.

    Parameters
    ----------
    png : ndarray of uint8
    channels : int
        Required number of channels.

    Returns
    -------
    ndarray, uint8, (H, W, channels), or None
        Values as they are stored, channels in the order of the file. None: the PNG is incomplete or has another
        number of channels.
    """
    shape = mask_shape(png)
    if shape is None or shape[2] != channels:
        return None
    try:
        mask = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if mask is None or mask.shape != (shape[:2] if channels == 1 else shape):
        return None
    if channels == 1:
        return mask[..., None]
    return np.ascontiguousarray(mask[..., [2, 1, 0, 3][:channels]])  # OpenCV returns blue first
