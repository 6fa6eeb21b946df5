"""Whole slides through OpenSlide: opening, downsampling to one image, and tiling of tissue."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import openslide

from preprocess.images.outcome import Excluded, Outcome, ProcessedImage, Unreadable
from preprocess.images.pathology.region import read_region, thumbnail
from preprocess.images.pathology.resolution import find_resolution
from preprocess.images.pathology.tissue import tile_fault, tissue_mask

THUMBNAIL_SIDE = 2048
# Minimum fraction of tissue on a slide; a biopsy covers a small part of its slide.
MIN_SLIDE_TISSUE = 0.002
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".vmu", ".dcm")
TIFF_SUFFIXES = (".tif", ".tiff")
DICOM_SUFFIXES = (".dcm",)


def is_slide(path: Path, tile: int) -> bool:
    """Tell whether a file is a whole slide, not a tile.

    A slide has a slide's suffix, or is a TIFF that OpenSlide reads: a scanner's format, a pyramid, or one level of more
    than two tiles across or down. OpenSlide does not see the levels of OME-TIFF, nor overviews without the flag.

    Parameters
    ----------
    path : Path
    tile : int
        Side of a tile, pixels.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return path.suffix.lower() in SLIDE_SUFFIXES
    try:
        with openslide.OpenSlide(path) as slide:
            vendor = slide.properties.get(openslide.PROPERTY_NAME_VENDOR)
            return slide.level_count > 1 or vendor != "generic-tiff" or max(slide.dimensions) > 2 * tile
    except (openslide.OpenSlideError, OSError):
        return False  # an ordinary TIFF; a damaged one fails when it is read as a tile


def series_of(path: Path) -> str | None:
    """Return the DICOM series of a file; None if it is not DICOM, or OpenSlide cannot read it.

    OpenSlide finds all levels of a slide from any file of its series in the folder.
    """
    if path.suffix.lower() not in DICOM_SUFFIXES:
        return None
    try:
        with openslide.OpenSlide(path) as slide:
            return slide.properties.get("dicom.SeriesInstanceUID")
    except (openslide.OpenSlideError, OSError):
        return None  # the file is counted as unreadable later


def read_slide(path: Path, render: Callable[[openslide.OpenSlide], Outcome]) -> Outcome:
    """Open a slide and apply `render` to it.

    Raises
    ------
    Unreadable
        OpenSlide cannot open the file, or a read fails because of damage.
    """
    try:
        with openslide.OpenSlide(path) as slide:
            return render(slide)
    except (openslide.OpenSlideError, OSError) as error:
        raise Unreadable(f"not a whole slide that OpenSlide reads ({type(error).__name__})") from error


def shrink_slide(slide: openslide.OpenSlide, size: int) -> Outcome:
    """Downsample a whole slide to one square image, as published; the aspect ratio is not kept.

    Raises
    ------
    Excluded
        The slide has almost no tissue.
    """
    overview = thumbnail(slide, 4 * size)
    if tissue_mask(overview).mean() < MIN_SLIDE_TISSUE:
        raise Excluded("no tissue")
    pixels = cv2.resize(overview, (size, size), interpolation=cv2.INTER_AREA)
    return Outcome([ProcessedImage(pixels, {"slide_size": list(slide.dimensions)})])


@dataclass(frozen=True)
class Tiling:
    """How tiles are cut from a whole slide.

    Attributes
    ----------
    size : int
        Side of the stored tiles, pixels.
    magnification : float
        Objective power at which a tile is cut.
    tile : int
        Side of a tile in pixels at that magnification.
    tiles : int
        Maximum number of tiles per slide.
    seed : int
        Seed of the order of candidate tiles.
    min_tissue : float
        Minimum fraction of tissue, 0..1.
    mpp : float or None
        Microns per pixel at full resolution, stated by hand; None: as recorded.
    """

    size: int
    magnification: float
    tile: int
    tiles: int
    seed: int
    min_tissue: float
    mpp: float | None = None


def cut_tiles(slide: openslide.OpenSlide, name: str, tiling: Tiling) -> Outcome:
    """Choose tiles with tissue from a whole slide.

    Candidates are the cells of a grid without overlap with enough tissue in the mask. The seed and the slide's file
    name determine a random order of the candidates. Candidates are checked by :func:`.tissue.tile_fault` until enough
    pass.

    Parameters
    ----------
    slide : OpenSlide
    name : str
        The slide's file name.
    tiling : Tiling

    Returns
    -------
    Outcome
        Tiles from top left to bottom right; ``x``, ``y`` and ``side`` in pixels of the slide's full resolution. The
        note counts grid cells with tissue, tiles kept, and why cells were refused.

    Raises
    ------
    Excluded
        The pixel size is unknown or too large for the magnification, or no tile passes.
    """
    resolution = find_resolution(slide.properties, tiling.mpp)
    # Nominal powers of scanners differ slightly from the powers computed from pixel sizes.
    if resolution.power < 0.9 * tiling.magnification:
        raise Excluded("scanned below the magnification")
    downsample = resolution.power / tiling.magnification
    side = round(tiling.tile * downsample)
    cells = _cells_with_tissue(slide, side, tiling.min_tissue)
    candidates = [cells[number] for number in _order(len(cells), name, tiling.seed)]
    tiles, refused = _choose_tiles(slide, candidates, side, tiling)
    if not tiles:
        raise Excluded("no tile with tissue")
    images = [
        ProcessedImage(pixels, {"x": x, "y": y, "side": side}, f"-{number:05d}")
        for number, ((y, x), pixels) in enumerate(sorted(tiles.items()))
    ]
    note = {
        "mpp": round(resolution.mpp, 4),
        "cells_with_tissue": len(cells),
        "tiles": len(images),
        "refused": dict(sorted(refused.items())),
    }
    return Outcome(images, note, resolution.remarks)


def _order(cells: int, name: str, seed: int) -> np.ndarray:
    """Return the random order of the cells of a slide, shape (cells,)."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(cells)


def _choose_tiles(
    slide: openslide.OpenSlide, cells: list[tuple[int, int]], side: int, tiling: Tiling
) -> tuple[dict[tuple[int, int], np.ndarray], Counter[str]]:
    """Return the first tiles that pass, by (y, x), and the counts of refused tiles by reason."""
    tiles: dict[tuple[int, int], np.ndarray] = {}
    refused: Counter[str] = Counter()
    for x, y in cells:
        if len(tiles) == tiling.tiles:
            break
        pixels = read_region(slide, (x, y), (side, side), (min(side, tiling.tile),) * 2)
        fault = tile_fault(pixels, tiling.min_tissue)
        if fault:
            refused[fault] += 1
        else:
            tiles[y, x] = cv2.resize(pixels, (tiling.size, tiling.size), interpolation=cv2.INTER_AREA)
    return tiles, refused


def _cells_with_tissue(slide: openslide.OpenSlide, side: int, min_tissue: float) -> list[tuple[int, int]]:
    """Return the top left corners, full-resolution pixels, of the grid cells with enough tissue."""
    width, height = slide.dimensions
    mask = tissue_mask(thumbnail(slide, THUMBNAIL_SIDE)).astype(np.float32)
    across, down = width // side, height // side
    if not across or not down:
        return []
    # Only complete cells count: the mask is cropped to them before averaging over each cell.
    cut = mask[
        : max(1, round(mask.shape[0] * down * side / height)), : max(1, round(mask.shape[1] * across * side / width))
    ]
    shares = cv2.resize(cut, (across, down), interpolation=cv2.INTER_AREA)
    return [(int(x) * side, int(y) * side) for y, x in np.argwhere(shares >= min_tissue)]
