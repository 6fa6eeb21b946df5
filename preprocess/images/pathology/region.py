"""Regions of a slide at reduced size, in bounded memory: a level is read in blocks."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import openslide

from mrmfast.arithmetic import ceil_div

# Pixels of a level that are read at once: 64 MB as OpenSlide returns them.
BLOCK_PIXELS = 1 << 24


def read_region(
    slide: openslide.OpenSlide, corner: tuple[int, int], extent: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Read a region of a slide and reduce it.

    The region is read from the coarsest level that has enough pixels. A slide may have one level only: what is larger
    than BLOCK_PIXELS is read and reduced in blocks.

    Parameters
    ----------
    slide : OpenSlide
    corner, extent : tuple of int
        x and y, width and height of the region, pixels at full resolution.
    size : tuple of int
        Width and height of the result, pixels.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3), BGR
        Area-averaged; white where the slide has no pixels.
    """
    level = slide.get_best_level_for_downsample(min(extent[0] / size[0], extent[1] / size[1]) * 1.01)
    downsample = slide.level_downsamples[level]
    pixels_per_output = (extent[0] / downsample / size[0]) * (extent[1] / downsample / size[1])
    side = max(1, int((BLOCK_PIXELS / max(1.0, pixels_per_output)) ** 0.5))
    across, down = (_cuts(length, side) for length in size)
    result = np.empty((size[1], size[0], 3), np.uint8)
    for top, bottom in down:
        for left, right in across:
            x0, x1 = (round(extent[0] * edge / size[0]) for edge in (left, right))
            y0, y1 = (round(extent[1] * edge / size[1]) for edge in (top, bottom))
            at_level = (max(1, round((x1 - x0) / downsample)), max(1, round((y1 - y0) / downsample)))
            block = on_white(slide.read_region((corner[0] + x0, corner[1] + y0), level, at_level))
            result[top:bottom, left:right] = cv2.resize(
                block, (right - left, bottom - top), interpolation=cv2.INTER_AREA
            )
    return result


def _cuts(length: int, side: int) -> list[tuple[int, int]]:
    """Cut a length into equal pieces of at most `side`."""
    pieces = ceil_div(length, side)
    edges = [round(length * number / pieces) for number in range(pieces + 1)]
    return list(itertools.pairwise(edges))


def thumbnail(slide: openslide.OpenSlide, side: int) -> np.ndarray:
    """Return the complete slide with its longer side at most `side` pixels: see :func:`read_region`."""
    width, height = slide.dimensions
    factor = min(1.0, side / max(width, height))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return read_region(slide, (0, 0), (width, height), size)


def on_white(image: Any) -> np.ndarray:
    """Composite a Pillow image on white, where the slide has no pixels, and convert it to BGR."""
    pixels = np.asarray(image.convert("RGBA"))
    if pixels[:, :, 3].min(initial=255) == 255:
        return np.ascontiguousarray(pixels[:, :, 2::-1])
    wide = pixels.astype(np.uint16)
    alpha = wide[:, :, 3:]
    flat = (wide[:, :, :3] * alpha + 255 * (255 - alpha)) // 255
    return np.ascontiguousarray(flat[:, :, ::-1].astype(np.uint8))
