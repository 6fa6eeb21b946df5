"""Tissue on a slide: is a tile worth keeping, and where on a whole slide are such tiles.

Thresholds are on OpenCV's HSV scale (hue 0..179, saturation and value 0..255) and were chosen so that all H&E and
immunostained tiles of TCGA, MoPaDi and scikit-image at hand stay, and histolab's blank and pen-marked ones go.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide

from preprocess.images.picture import Outcome, Picture, SetAside, Unreadable

# Tiles are judged at this size, so that the verdict does not depend on their resolution.
JUDGED_SIDE = 256
# Glass stays below this saturation, chroma noise of JPEG included.
TISSUE_SATURATION = 25
PEN_SHARE = 0.1
THUMBNAIL_SIDE = 2048
# A biopsy is small on its slide: 0.2 % of it already counts.
MIN_SLIDE_TISSUE = 0.002
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".vmu")
TIFF_SUFFIXES = (".tif", ".tiff")


def tile_fault(tile: np.ndarray, min_tissue: float) -> str | None:
    """Say why a tile should not be kept; None if it should.

    Parameters
    ----------
    tile : ndarray of uint8, shape (height, width, 3), BGR
    min_tissue : float
        Least share of stained pixels, 0..1.

    Returns
    -------
    str or None
        ``"pen mark"``, ``"little tissue"`` or None.
    """
    small = cv2.resize(tile, (JUDGED_SIDE, JUDGED_SIDE), interpolation=cv2.INTER_AREA)
    hue, saturation, value = cv2.split(cv2.cvtColor(small, cv2.COLOR_BGR2HSV))
    # No stain in use is green, cyan or strongly blue.
    cool = (hue > 35) & (hue < 118) & (saturation > 80)
    # Red and black ink lie above the focal plane: evenly coloured, where blood and nuclei have fine detail.
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
    # On an empty slide Otsu splits the noise, on a full one the tissue: hold it near what glass reaches.
    return saturation > min(max(threshold, TISSUE_SATURATION), 3 * TISSUE_SATURATION)


def is_slide(path: Path) -> bool:
    """Tell whether a file is a whole slide, not a tile: by its suffix, or a TIFF that is a pyramid."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return path.suffix.lower() in SLIDE_SUFFIXES
    try:
        with openslide.OpenSlide(path) as slide:
            return slide.level_count > 1
    except (openslide.OpenSlideError, OSError):
        return False  # an ordinary TIFF; a damaged one is found out when it is read as a tile


def read_slide(path: Path, render: Callable[[openslide.OpenSlide], Outcome]) -> Outcome:
    """Open a slide and apply `render` to it.

    Raises
    ------
    Unreadable
        OpenSlide cannot open it, or meets damage while reading.
    """
    try:
        with openslide.OpenSlide(path) as slide:
            return render(slide)
    except (openslide.OpenSlideError, OSError) as error:
        raise Unreadable(f"not a whole slide that OpenSlide reads ({type(error).__name__})") from error


def whole_slide(slide: openslide.OpenSlide, size: int) -> Outcome:
    """Shrink a whole slide to one square picture, as published; proportions are not kept.

    Raises
    ------
    SetAside
        There is next to no tissue on it.
    """
    thumbnail = _on_white(slide.get_thumbnail((4 * size, 4 * size)))
    if tissue_mask(thumbnail).mean() < MIN_SLIDE_TISSUE:
        raise SetAside("no tissue")
    picture = cv2.resize(thumbnail, (size, size), interpolation=cv2.INTER_AREA)
    return Outcome([Picture(picture, {"slide_size": list(slide.dimensions)})])


def slide_tiles(
    slide: openslide.OpenSlide,
    name: str,
    *,
    size: int,
    magnification: float,
    tile: int,
    tiles: int,
    seed: int,
    min_tissue: float,
) -> Outcome:
    """Choose tiles with tissue from a whole slide.

    Candidates are the cells of a grid without overlap that hold enough of the tissue mask; they are looked at in an
    order drawn from `seed` and the file's name until enough have passed :func:`tile_fault`.

    Parameters
    ----------
    slide : OpenSlide
    name : str
        The slide's file name.
    size : int
        Side of the stored tiles, pixels.
    magnification : float
        Objective power at which a tile is cut.
    tile : int
        Side of a tile in pixels at that magnification.
    tiles : int
        At most so many.
    seed : int
    min_tissue : float
        Least share of tissue, 0..1.

    Returns
    -------
    Outcome
        Tiles from top left to bottom right; ``x``, ``y`` and ``side`` in pixels of the slide's full resolution. The
        note counts grid cells with tissue, cells looked at, and why some were refused.

    Raises
    ------
    SetAside
        The magnification is unknown or below the one asked for, or no tile passes.
    """
    native = _objective_power(slide)
    if native is None:
        raise SetAside("magnification not recorded")
    # Scanners' nominal powers differ a little from what pixel sizes say.
    if native < 0.9 * magnification:
        raise SetAside("scanned below the magnification")
    side = round(tile * native / magnification)
    cells = _cells_with_tissue(slide, side, min_tissue)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(len(cells))
    chosen: list[tuple[int, int, np.ndarray]] = []
    refused: Counter[str] = Counter()
    for x, y in (cells[number] for number in order):
        if len(chosen) == tiles:
            break
        pixels = _region(slide, x, y, side, native / magnification)
        fault = tile_fault(pixels, min_tissue)
        if fault:
            refused[fault] += 1
        else:
            chosen.append((y, x, cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)))
    if not chosen:
        raise SetAside("no tile with tissue")
    chosen.sort(key=lambda entry: entry[:2])
    pictures = [
        Picture(pixels, {"x": x, "y": y, "side": side}, f"-{number:05d}")
        for number, (y, x, pixels) in enumerate(chosen)
    ]
    note: dict[str, Any] = {
        "cells_with_tissue": len(cells),
        "tiles": len(chosen),
        "refused": dict(sorted(refused.items())),
    }
    return Outcome(pictures, note)


def _objective_power(slide: openslide.OpenSlide) -> float | None:
    """Objective power of the full resolution: as the scanner says, or from the pixel size (10 micrometres at 1x)."""
    pixel = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
    power = slide.properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
    try:
        return float(power) if power else 10 / float(pixel) if pixel else None
    except (ValueError, ZeroDivisionError):
        return None


def _cells_with_tissue(slide: openslide.OpenSlide, side: int, min_tissue: float) -> list[tuple[int, int]]:
    """Return the top left corners, full-resolution pixels, of the grid cells with enough tissue."""
    width, height = slide.dimensions
    mask = tissue_mask(_on_white(slide.get_thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE)))).astype(np.float32)
    across, down = width // side, height // side
    if not across or not down:
        return []
    # Only whole cells count: cut the mask to them before averaging over each.
    cut = mask[
        : max(1, round(mask.shape[0] * down * side / height)), : max(1, round(mask.shape[1] * across * side / width))
    ]
    shares = cv2.resize(cut, (across, down), interpolation=cv2.INTER_AREA)
    return [(int(x) * side, int(y) * side) for y, x in np.argwhere(shares >= min_tissue)]


def _region(slide: openslide.OpenSlide, x: int, y: int, side: int, downsample: float) -> np.ndarray:
    """Read a square of the slide from the level just fine enough, BGR."""
    level = slide.get_best_level_for_downsample(downsample * 1.01)
    pixels = max(1, round(side / slide.level_downsamples[level]))
    return _on_white(slide.read_region((x, y), level, (pixels, pixels)))


def _on_white(image: Any) -> np.ndarray:
    """Put a Pillow image on white, where the slide has no pixels, and turn it into BGR."""
    pixels = np.asarray(image.convert("RGBA")).astype(np.uint16)
    alpha = pixels[:, :, 3:]
    flat = (pixels[:, :, :3] * alpha + 255 * (255 - alpha)) // 255
    return np.ascontiguousarray(flat[:, :, ::-1].astype(np.uint8))
