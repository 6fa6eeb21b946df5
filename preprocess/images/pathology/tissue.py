"""Tissue detection: quality control of a tile, and the tissue mask of a thumbnail.

The thresholds use OpenCV's HSV scale (hue 0..179, saturation and value 0..255). They were chosen on example data: all
H&E and immunostained tiles of TCGA, MoPaDi and scikit-image are kept; histolab's blank and pen-marked tiles are
excluded.
"""

from __future__ import annotations

import cv2
import numpy as np

# Tiles are resized to this size before the checks, so that the result does not depend on their resolution.
JUDGED_SIDE = 256
# Glass stays below this saturation, chroma noise of JPEG included.
TISSUE_SATURATION = 25
PEN_SHARE = 0.1


def tile_fault(tile: np.ndarray, min_tissue: float) -> str | None:
    """Return why a tile is excluded; None if it is kept.

    Parameters
    ----------
    tile : ndarray of uint8, shape (height, width, 3), BGR
    min_tissue : float
        Minimum fraction of stained pixels, 0..1.

    Returns
    -------
    str or None
        ``"pen mark"``, ``"little tissue"`` or None.
    """
    small = cv2.resize(tile, (JUDGED_SIDE, JUDGED_SIDE), interpolation=cv2.INTER_AREA)
    hue, saturation, value = cv2.split(cv2.cvtColor(small, cv2.COLOR_BGR2HSV))
    # No common stain is green, cyan or strongly blue.
    cool = (hue > 35) & (hue < 118) & (saturation > 80)
    # Red and black ink are above the focal plane and evenly coloured; blood and nuclei have fine detail.
    grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    smooth = cv2.blur(np.abs(cv2.Laplacian(grey, cv2.CV_32F)), (9, 9)) < 4
    red = ((hue < 8) | (hue > 168)) & (saturation > 120) & smooth
    black = (value < 80) & smooth
    if (cool | red | black).mean() > PEN_SHARE:
        return "pen mark"
    return "little tissue" if (saturation > TISSUE_SATURATION).mean() < min_tissue else None


def tissue_mask(thumbnail: np.ndarray) -> np.ndarray:
    """Separate tissue from glass on a slide's thumbnail: Otsu's threshold on the smoothed saturation.

    Parameters
    ----------
    thumbnail : ndarray of uint8, shape (height, width, 3), BGR

    Returns
    -------
    ndarray of bool, shape (height, width)
    """
    saturation = cv2.GaussianBlur(cv2.cvtColor(thumbnail, cv2.COLOR_BGR2HSV)[:, :, 1], (5, 5), 0)
    threshold, _ = cv2.threshold(saturation, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    # On an empty slide Otsu splits the noise, on a full slide the tissue: the threshold is limited to a range near
    # glass.
    return saturation > min(max(threshold, TISSUE_SATURATION), 3 * TISSUE_SATURATION)
