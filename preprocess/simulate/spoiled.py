"""Images that quality control must exclude: black, overexposed, or not of a fundus."""

from __future__ import annotations

import cv2
import numpy as np


def _black(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate a missing flash: sensor noise and a weak trace of the field of view."""
    return np.clip(image * 0.02 + rng.normal(2, 1.2, image.shape), 0, 255).astype(np.uint8)


def _overexposed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate overexposure: the field of view is saturated and glare covers the rest of the sensor."""
    glare = cv2.GaussianBlur(image, (0, 0), image.shape[0] / 12).astype(np.float32)
    return np.clip(image * 4.5 + glare * 1.5 + rng.uniform(90, 130), 0, 255).astype(np.uint8)


def _not_fundus(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a sheet of paper on a desk."""
    height, width = image.shape[:2]
    shade = cv2.resize(
        rng.uniform(60, 130, (3, 4, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    scene = np.clip(shade, 0, 255).astype(np.uint8)
    corners = np.array([(0.2, 0.12), (0.82, 0.16), (0.78, 0.9), (0.15, 0.84)]) + rng.normal(0, 0.03, (4, 2))
    cv2.fillPoly(scene, [(corners * (width, height)).astype(np.int32)], (214, 220, 222), cv2.LINE_AA)
    for line in range(int(rng.integers(9, 16))):
        start = corners[0] + (0.06, 0.07) + np.array((-0.05, 0.62)) * line / 16
        end = start + np.array((rng.uniform(0.25, 0.45), 0.02))
        points = [tuple((point * (width, height)).astype(int).tolist()) for point in (start, end)]
        cv2.line(scene, points[0], points[1], (70, 66, 64), max(1, height // 160), cv2.LINE_AA)
    return cv2.GaussianBlur(scene, (0, 0), 1.2)


_SPOIL = {"black": _black, "overexposed": _overexposed, "not_fundus": _not_fundus}


def spoil(image: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Convert a good image into a bad image of a kind of ``cohort.BAD_KINDS``, uint8, same shape."""
    return _SPOIL[kind](image, rng)
