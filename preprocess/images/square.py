"""Square images of one size, for images that are not cropped by their content."""

from __future__ import annotations

import cv2
import numpy as np

CROPS = ("none", "square")


def to_square(image: np.ndarray, crop: str, size: int) -> np.ndarray:
    """Make an image square and resize it.

    Parameters
    ----------
    image : ndarray of uint8, shape (height, width, 3)
    crop : {"none", "square"}
        ``none``: nothing is cut; the shorter side is padded with black on both sides. ``square``: the largest centred
        square is cut out.
    size : int
        Side of the result, pixels.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)
        Area-averaged where the image is larger, else interpolated.
    """
    height, width = image.shape[:2]
    if crop == "square":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image[top : top + side, left : left + side]
    else:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        square = cv2.copyMakeBorder(
            image, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT, value=(0, 0, 0)
        )
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if side >= size else cv2.INTER_LINEAR)
