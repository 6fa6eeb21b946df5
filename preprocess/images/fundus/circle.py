"""Find the round field of view of a fundus image: step 1 of the image quality control.

There are two detectors. ``mrmfast``, the default, fits a circle to the outline of the lit region; it works for fields
of view cropped at top and bottom, for dark images and for any image size. ``hough`` is the published detector (median
blur 25, Hough circles of radius at least min(h, w)/4), kept for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

# The outline is fitted at this size (longer side, pixels), where 1 pixel is about 0.4 % of the radius.
WORK_SIDE = 512
# Candidate thresholds, as fractions of the difference between background and lit level: low thresholds keep dim retina,
# high thresholds exclude a bright haze around the field of view.
LIFTS = (0.12, 0.07, 0.2, 0.32)
# Minimum threshold above the background in grey levels: a dimmer region is sensor or JPEG noise.
MIN_STEP = 3.0
# The circle explains outline points within this distance (fraction of the radius).
TOLERANCE = 0.015
MIN_SUPPORT, MIN_COVERAGE, MIN_FILL, MAX_SPILL = 0.6, 0.18, 0.7, 0.08
# The smaller the visible part of the rim (fraction of all directions), the more of the outline the circle must explain.
MIN_SUPPORT_AND_COVERAGE = 1.05
GOOD_ENOUGH = 0.93
# Grey levels: a surround from this level on is light, and differs by less than the noise from one colour.
LIGHT_SURROUND, SURROUND_NOISE = 60, 12
RANSAC_DRAWS, OUTLINE_POINTS, SECTORS = 300, 400, 72


@dataclass(frozen=True)
class Circle:
    """A circle in pixels of its image; centre and rim may be outside the image."""

    x: float
    y: float
    radius: float

    def scaled(self, factor: float) -> Circle:
        """Return the same circle in an image `factor` times as large."""
        return Circle(self.x * factor, self.y * factor, self.radius * factor)


def detect_outline(image: np.ndarray) -> Circle | None:
    """Find the field of view from the outline of the lit region.

    Where the corners are white or grey, the difference from their colour takes the place of the brightness.

    The lit region is the largest connected component above a threshold on the brightest channel (red, on retina). A
    circle is fitted to the convex outline by RANSAC and trimmed least squares. Points on the image border and long
    horizontal or vertical edges (a cropped field of view) do not count. The circle is accepted if it explains most of
    the outline and the region fills it.

    Parameters
    ----------
    image : ndarray of uint8, shape (height, width, 3)

    Returns
    -------
    Circle or None
        In pixels of `image`; None if there is no round lit region.
    """
    height, width = image.shape[:2]
    factor = min(1.0, WORK_SIDE / max(height, width))
    if factor < 1:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    surround = light_surround(image)
    if surround is None:
        best = _fit_level(image.max(axis=2))
    else:
        best = _fit_level(cv2.absdiff(image, np.full_like(image, surround)).max(axis=2))
    return best.scaled(width / image.shape[1]) if best else None


def light_surround(image: np.ndarray) -> np.ndarray | None:
    """Return the colour around the field of view if it is white or grey; None if it is dark or not of one colour.

    Parameters
    ----------
    image : ndarray of uint8, shape (height, width, 3)

    Returns
    -------
    ndarray of uint8, shape (3,), or None
        The median of the four corners.
    """
    height, width = image.shape[:2]
    side = max(2, min(height, width) // 32)
    corners = np.concatenate(
        [image[rows, columns].reshape(-1, 3) for rows in (slice(side), slice(height - side, None))
         for columns in (slice(side), slice(width - side, None))]
    )  # fmt: skip
    colour = np.median(corners, axis=0).astype(np.uint8)
    uniform = np.percentile(np.abs(corners.astype(int) - colour).max(axis=1), 90) <= SURROUND_NOISE
    return colour if uniform and colour.min() >= LIGHT_SURROUND else None


def _fit_level(level: np.ndarray) -> Circle | None:
    """Fit a circle to what is brighter than the background on one channel."""
    level = cv2.GaussianBlur(level, (5, 5), 0)
    background, lit = np.percentile(level, (1, 90))
    best, best_score = None, 0.0
    for lift in LIFTS:
        step = max(MIN_STEP, lift * (lit - background))
        circle, score = _fit_region((level > background + step).astype(np.uint8))
        if score > best_score:
            best, best_score = circle, score
        if score > GOOD_ENOUGH:
            break
    return best


def _fit_region(mask: np.ndarray) -> tuple[Circle | None, float]:
    """Fit a circle to the largest component of a mask; return it with a score in [0, 1], 0 without a circle."""
    height, width = mask.shape
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if len(stats) < 2:
        return None, 0.0
    region = (labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    points = _outline(region)
    if len(points) < 30:
        return None, 0.0
    circle = _fit_circle(points)
    if circle is None or not min(height, width) / 4 <= circle.radius <= max(height, width):
        return None, 0.0
    offsets = points - (circle.x, circle.y)
    near = np.abs(np.hypot(*offsets.T) - circle.radius) < _tolerance(circle.radius)
    support = near.mean()
    sectors = np.floor((np.arctan2(offsets[near, 1], offsets[near, 0]) / (2 * math.pi) + 0.5) * SECTORS).astype(int)
    coverage = len(np.unique(sectors % SECTORS)) / SECTORS
    disc = np.zeros_like(region)
    cv2.circle(disc, (round(circle.x), round(circle.y)), round(circle.radius), 1, -1)
    inside = int((region & disc).sum())
    fill = inside / max(1, int(disc.sum()))
    spill = 1 - inside / int(region.sum())
    round_enough = (
        min(support / MIN_SUPPORT, coverage / MIN_COVERAGE, (support + coverage) / MIN_SUPPORT_AND_COVERAGE) >= 1
    )
    if not round_enough or fill < MIN_FILL or spill > MAX_SPILL:
        return None, 0.0
    return circle, float(support * fill * (1 - spill))


def _outline(region: np.ndarray) -> np.ndarray:
    """Return points of a region's convex outline that may be on the circle, float, shape (points, 2)."""
    contours, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(max(contours, key=len)).reshape(-1, 2).astype(np.float64)
    height, width = region.shape
    start, end = hull, np.roll(hull, -1, axis=0)
    run = np.abs(end - start)
    length = np.hypot(*run.T)
    # A pixelated circle has horizontal edges of about sqrt(8 r) pixels; longer edges come from cropping.
    cut = (run.min(axis=1) <= 1) & (length > 3.5 * math.sqrt(max(height, width)))
    pieces = [
        a + (b - a) * np.arange(0, 1, 1 / max(1, math.ceil(n)))[:, None]
        for a, b, n in zip(start[~cut], end[~cut], length[~cut], strict=True)
    ]
    if not pieces:
        return np.empty((0, 2))
    points = np.concatenate(pieces)
    x, y = points.T
    points = points[(x > 2) & (y > 2) & (x < width - 3) & (y < height - 3)]
    return points[np.linspace(0, len(points) - 1, min(len(points), OUTLINE_POINTS)).astype(int)]


def _tolerance(radius: float) -> float:
    return max(1.5, TOLERANCE * radius)


def _fit_circle(points: np.ndarray) -> Circle | None:
    """Fit by RANSAC over triples (fixed seed: equal bytes in every run), then least squares on the explained points."""
    draws = np.random.default_rng(0).integers(0, len(points), (RANSAC_DRAWS, 3))
    a, b, c = points[draws[:, 0]], points[draws[:, 1]], points[draws[:, 2]]
    ab, ac = b - a, c - a
    cross = 2 * (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])
    usable = np.abs(cross) > 1
    if not usable.any():
        return None
    a, ab, ac, cross = a[usable], ab[usable], ac[usable], cross[usable]
    ab2, ac2 = (ab**2).sum(axis=1), (ac**2).sum(axis=1)
    ux = (ac[:, 1] * ab2 - ab[:, 1] * ac2) / cross
    uy = (ab[:, 0] * ac2 - ac[:, 0] * ab2) / cross
    radius = np.hypot(ux, uy)
    distance = np.hypot(points[None, :, 0] - (a[:, 0] + ux)[:, None], points[None, :, 1] - (a[:, 1] + uy)[:, None])
    near = np.abs(distance - radius[:, None]) < np.maximum(1.5, TOLERANCE * radius)[:, None]
    chosen = near[int(np.argmax(near.sum(axis=1)))]
    circle = None
    for _ in range(4):
        if chosen.sum() < 10:
            return None
        x, y = points[chosen].T
        design = np.column_stack([x, y, np.ones_like(x)])
        (p, q, s), *_ = np.linalg.lstsq(design, x**2 + y**2, rcond=None)
        square = s + (p**2 + q**2) / 4
        if square <= 0:
            return None
        circle = Circle(float(p / 2), float(q / 2), math.sqrt(square))
        distance = np.hypot(points[:, 0] - circle.x, points[:, 1] - circle.y)
        chosen = np.abs(distance - circle.radius) < _tolerance(circle.radius)
    return circle


def detect_hough(image: np.ndarray) -> Circle | None:
    """Find the field of view as published (ContIG, ``image_preprocessing/resize.py``), on the full-size image.

    Parameters
    ----------
    image : ndarray of uint8, shape (height, width, 3), BGR

    Returns
    -------
    Circle or None
        The strongest circle, rounded to whole pixels.
    """
    grey = cv2.medianBlur(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), 25)
    circles = cv2.HoughCircles(grey, cv2.HOUGH_GRADIENT, 1, minDist=50, minRadius=min(grey.shape) // 4)
    if circles is None:
        return None
    # OpenCV 4 returns (1, n, 3), other versions (n, 1, 3); the strongest circle is first in both.
    x, y, radius = np.rint(circles.reshape(-1, circles.shape[-1])[0, :3]).tolist()
    return Circle(x, y, radius)


DETECTORS: dict[str, Callable[[np.ndarray], Circle | None]] = {"mrmfast": detect_outline, "hough": detect_hough}


def crop(image: np.ndarray, circle: Circle, margin: float, size: int) -> np.ndarray:
    """Crop the bounding box of the circle and resize it.

    Parameters
    ----------
    image : ndarray of uint8, shape (height, width, 3)
    circle : Circle
        In pixels of `image`.
    margin : float
        Added on each side of the box, pixels of `image`.
    size : int
        Side of the result, pixels.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)
        Area-averaged; black where the box reaches beyond the image.
    """
    height, width = image.shape[:2]
    reach = circle.radius + margin
    left, top = round(circle.x - reach), round(circle.y - reach)
    side = max(1, round(2 * reach))
    box = np.zeros((side, side, 3), np.uint8)
    x0, y0, x1, y1 = max(0, left), max(0, top), min(width, left + side), min(height, top + side)
    if x0 < x1 and y0 < y1:
        box[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
    return cv2.resize(box, (size, size), interpolation=cv2.INTER_AREA)


def blacken_outside(image: np.ndarray, radius: float) -> np.ndarray:
    """Make everything outside the centred circle black, as it is around most fundus images.

    Parameters
    ----------
    image : ndarray of uint8, shape (size, size, 3)
        From :func:`crop`.
    radius : float
        Radius of the circle as a fraction of half the side.
    """
    size = image.shape[0]
    y, x = (np.mgrid[:size, :size] + 0.5) / (size / 2) - 1
    return np.where((np.hypot(x, y) < radius)[..., None], image, np.uint8(0))


def content_fault(image: np.ndarray) -> str | None:
    """Return why a cropped image has no visible content (black, overexposed or without structure); None if it has.

    Only the inner half of the image counts, because the corners are black.
    """
    quarter = image.shape[0] // 4
    centre = image[quarter : 3 * quarter, quarter : 3 * quarter]
    if centre.max(axis=2).mean() < 5:
        return "black"
    if (centre.min(axis=2) >= 250).mean() > 0.9:
        return "overexposed"
    if centre.std(axis=(0, 1)).max() < 1.5:
        return "without content"
    return None
