"""Whole slides through OpenSlide: opening, downsampling to one image, and tiling of tissue."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide

from preprocess.images.outcome import Excluded, Outcome, ProcessedImage, Unreadable
from preprocess.images.pathology.tissue import tile_fault, tissue_mask

THUMBNAIL_SIDE = 2048
# Minimum fraction of tissue on a slide; a biopsy covers a small part of its slide.
MIN_SLIDE_TISSUE = 0.002
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".svslide", ".bif", ".vms", ".vmu")
TIFF_SUFFIXES = (".tif", ".tiff")


def is_slide(path: Path) -> bool:
    """Tell whether a file is a whole slide, not a tile: by its suffix, or a TIFF that is a pyramid."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return path.suffix.lower() in SLIDE_SUFFIXES
    try:
        with openslide.OpenSlide(path) as slide:
            return slide.level_count > 1
    except (openslide.OpenSlideError, OSError):
        return False  # an ordinary TIFF; a damaged one fails when it is read as a tile


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
    thumbnail = _on_white(slide.get_thumbnail((4 * size, 4 * size)))
    if tissue_mask(thumbnail).mean() < MIN_SLIDE_TISSUE:
        raise Excluded("no tissue")
    pixels = cv2.resize(thumbnail, (size, size), interpolation=cv2.INTER_AREA)
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
    """

    size: int
    magnification: float
    tile: int
    tiles: int
    seed: int
    min_tissue: float


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
        The magnification is unknown or below the requested one, or no tile passes.
    """
    downsample = _objective_power(slide, tiling.magnification) / tiling.magnification
    side = round(tiling.tile * downsample)
    cells = _cells_with_tissue(slide, side, tiling.min_tissue)
    candidates = [cells[number] for number in _order(len(cells), name, tiling.seed)]
    tiles, refused = _choose_tiles(slide, candidates, downsample, tiling)
    if not tiles:
        raise Excluded("no tile with tissue")
    images = [
        ProcessedImage(pixels, {"x": x, "y": y, "side": side}, f"-{number:05d}")
        for number, ((y, x), pixels) in enumerate(sorted(tiles.items()))
    ]
    note = {"cells_with_tissue": len(cells), "tiles": len(images), "refused": dict(sorted(refused.items()))}
    return Outcome(images, note)


def _order(cells: int, name: str, seed: int) -> np.ndarray:
    """Return the random order of the cells of a slide, shape (cells,)."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(cells)


def _choose_tiles(
    slide: openslide.OpenSlide, cells: list[tuple[int, int]], downsample: float, tiling: Tiling
) -> tuple[dict[tuple[int, int], np.ndarray], Counter[str]]:
    """Return the first tiles that pass, by (y, x), and the counts of refused tiles by reason."""
    tiles: dict[tuple[int, int], np.ndarray] = {}
    refused: Counter[str] = Counter()
    for x, y in cells:
        if len(tiles) == tiling.tiles:
            break
        pixels = _read_square(slide, x, y, round(tiling.tile * downsample), downsample)
        fault = tile_fault(pixels, tiling.min_tissue)
        if fault:
            refused[fault] += 1
        else:
            tiles[y, x] = cv2.resize(pixels, (tiling.size, tiling.size), interpolation=cv2.INTER_AREA)
    return tiles, refused


def _objective_power(slide: openslide.OpenSlide, magnification: float) -> float:
    """Return the objective power at full resolution, which must be at least the magnification.

    The scanner records the objective power; otherwise the pixel size gives it (10 micrometres at 1x).
    """
    pixel = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
    recorded = slide.properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
    try:
        power = float(recorded) if recorded else 10 / float(pixel) if pixel else None
    except (ValueError, ZeroDivisionError):
        power = None
    if power is None:
        raise Excluded("magnification not recorded")
    # Nominal powers of scanners differ slightly from the powers computed from pixel sizes.
    if power < 0.9 * magnification:
        raise Excluded("scanned below the magnification")
    return power


def _cells_with_tissue(slide: openslide.OpenSlide, side: int, min_tissue: float) -> list[tuple[int, int]]:
    """Return the top left corners, full-resolution pixels, of the grid cells with enough tissue."""
    width, height = slide.dimensions
    mask = tissue_mask(_on_white(slide.get_thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE)))).astype(np.float32)
    across, down = width // side, height // side
    if not across or not down:
        return []
    # Only complete cells count: the mask is cropped to them before averaging over each cell.
    cut = mask[
        : max(1, round(mask.shape[0] * down * side / height)), : max(1, round(mask.shape[1] * across * side / width))
    ]
    shares = cv2.resize(cut, (across, down), interpolation=cv2.INTER_AREA)
    return [(int(x) * side, int(y) * side) for y, x in np.argwhere(shares >= min_tissue)]


def _read_square(slide: openslide.OpenSlide, x: int, y: int, side: int, downsample: float) -> np.ndarray:
    """Read a square of the slide from the coarsest level with enough resolution, BGR."""
    level = slide.get_best_level_for_downsample(downsample * 1.01)
    pixels = max(1, round(side / slide.level_downsamples[level]))
    return _on_white(slide.read_region((x, y), level, (pixels, pixels)))


def _on_white(image: Any) -> np.ndarray:
    """Composite a Pillow image on white, where the slide has no pixels, and convert it to BGR."""
    pixels = np.asarray(image.convert("RGBA")).astype(np.uint16)
    alpha = pixels[:, :, 3:]
    flat = (pixels[:, :, :3] * alpha + 255 * (255 - alpha)) // 255
    return np.ascontiguousarray(flat[:, :, ::-1].astype(np.uint8))
