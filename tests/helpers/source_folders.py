"""Folders of images as users have them: small photographs at given paths."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def photograph(seed: int, side: int = 120) -> np.ndarray:
    """A round, textured field of view on black, uint8, shape (side, side, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    lit = np.hypot(x - side / 2, y - side / 2) < 0.42 * side
    texture = cv2.resize(rng.uniform(0.5, 1, (12, 12)), (side, side), interpolation=cv2.INTER_CUBIC)
    return (lit * texture * 180)[:, :, None].repeat(3, 2).clip(0, 255).astype(np.uint8)


def write_photographs(root: Path, files: list[str]) -> Path:
    """Write a photograph at each path."""
    for seed, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix.lower(), photograph(seed))[1].tobytes())
    return root
