"""Retinal vessels: two arcades above and two below, arteries and veins, branching and tapering.

Lengths are in radii of the field of view, x to the right and y down, for a right eye (disc on the right).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Main trunks in the frame of the disc: (towards the fovea, upwards), in disc-fovea distances. Temporal trunks
# curve around the macula, nasal trunks lead away from it.
_TEMPORAL = np.array([(0.0, 0.0), (0.06, 0.22), (0.28, 0.58), (0.75, 0.82), (1.35, 0.78), (2.1, 0.55)])
_NASAL = np.array([(0.0, 0.0), (-0.06, 0.22), (-0.3, 0.5), (-0.65, 0.85), (-1.1, 1.3)])
_VEIN_WIDTH = 0.0205  # at the disc; the central retinal vein is about a tenth of the disc's width
_ARTERY_WIDTH = 0.0145
_FOVEA_FREE = 0.1
_STEP = 0.012
_SUPERSAMPLE = 2
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


@dataclass(frozen=True)
class Branch:
    """A segment of a vessel: points (x, y), float64, shape (P, 2), and widths, shape (P,)."""

    points: np.ndarray
    widths: np.ndarray


def _smooth_path(corners: np.ndarray) -> np.ndarray:
    """Return a curve with rounded corners, resampled at _STEP."""
    for _ in range(3):  # Chaikin's corner cutting
        cut = np.empty((2 * len(corners) - 2, 2))
        cut[0::2] = 0.75 * corners[:-1] + 0.25 * corners[1:]
        cut[1::2] = 0.25 * corners[:-1] + 0.75 * corners[1:]
        corners = np.vstack([corners[:1], cut, corners[-1:]])
    along = np.concatenate(([0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))))
    at = np.arange(0, along[-1], _STEP)
    return np.column_stack([np.interp(at, along, corners[:, axis]) for axis in (0, 1)])


def _bend(points: np.ndarray, tortuosity: float, width: float, rng: np.random.Generator) -> np.ndarray:
    """Displace a path sideways in waves; thin vessels have shorter waves."""
    arc = np.arange(len(points)) * _STEP
    step = np.empty_like(points)
    step[1:] = points[1:] - points[:-1]
    step[0] = step[1]
    normal = step[:, ::-1] * ((-1 / _STEP), (1 / _STEP))  # points are about _STEP apart
    wavelength = rng.uniform(((0.09,), (0.18,)), ((0.16,), (0.34,))) * (0.6 + 25 * width)
    size, phase = rng.uniform(0.4, 1.0, (2, 1)), rng.random((2, 1))
    waves = (size * wavelength * np.sin(2 * np.pi * (arc / wavelength + phase))).sum(axis=0)
    return points + normal * (0.045 * tortuosity * waves * np.minimum(1, arc / 0.15))[:, None]


def _shoot(
    start: np.ndarray,
    heading: float,
    length: float,
    width: float,
    tortuosity: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return a free branch with a constant slight curvature."""
    steps = max(4, int(length / _STEP))
    headings = heading + np.cumsum(rng.normal(0, 0.03) + rng.normal(0, 0.055, steps))
    path = start + np.cumsum(_STEP * np.column_stack([np.cos(headings), np.sin(headings)]), axis=0)
    return _bend(np.vstack([start, path]), 0.8 * tortuosity, width, rng)


def _visible(points: np.ndarray, fovea: np.ndarray) -> int:
    """Return the number of points from the start that are inside the field and outside the fovea."""
    stop = (np.hypot(*(points - fovea).T) < _FOVEA_FREE) | (np.hypot(*points.T) > 1.03)
    return int(stop.argmax()) if stop.any() else len(points)


def grow(
    disc: np.ndarray, fovea: np.ndarray, width: float, tortuosity: float, vein: bool, rng: np.random.Generator
) -> list[Branch]:
    """Return the arterial or the venous tree of one eye.

    Parameters
    ----------
    disc, fovea
        Centres, shape (2,).
    width, tortuosity
        Relative to the usual, 1.

    Returns
    -------
    branches
        Trunks first, then twigs.
    """
    temporal = fovea - disc
    upward = np.array([-temporal[1], temporal[0]])
    upward *= -np.sign(upward[1])
    base = (_VEIN_WIDTH if vein else _ARTERY_WIDTH) * width
    todo: list[tuple[np.ndarray, float, int]] = []
    for outline, share in ((_TEMPORAL, 1.0), (_NASAL, 0.8)):
        for side in (1, -1):
            wobble = rng.uniform(0.86, 1.14, (len(outline), 2)) * (1.04 if vein else 0.93)
            corners = disc + outline[:, :1] * wobble[:, :1] * temporal
            corners = corners + side * outline[:, 1:] * wobble[:, 1:] * upward
            corners += rng.normal(0, 0.014, 2)
            trunk_width = base * share * rng.uniform(0.85, 1.1)
            todo.append((_bend(_smooth_path(corners), tortuosity, trunk_width, rng), trunk_width, 0))
    for _ in range(int(rng.integers(2, 5))):  # small vessels straight from the disc to the macula and the nose
        heading = np.arctan2(*temporal[::-1]) + rng.choice((0, np.pi)) + rng.normal(0, 0.45)
        small = base * rng.uniform(0.25, 0.4)
        todo.append((_shoot(disc, heading, rng.uniform(0.3, 0.5), small, tortuosity, rng), small, 2))

    branches = []
    while todo:
        points, start_width, depth = todo.pop(0)
        points = points[: _visible(points, fovea)]
        if len(points) < 6:
            continue
        taper = 1 - (0.5 if depth == 0 else 0.72) * np.linspace(0, 1, len(points))
        widths = start_width * taper
        branches.append(Branch(points, widths))
        if depth >= 3 or start_width < 0.0042:
            continue
        side = rng.choice((-1, 1))
        at = int(rng.uniform(0.1, 0.25) / _STEP)
        while at < len(points) - 4:
            step = points[at + 2] - points[at]
            heading = np.arctan2(step[1], step[0]) + side * rng.uniform(0.45, 1.0)
            child_width = widths[at] * rng.uniform(0.4, 0.72)
            length = rng.uniform(0.25, 0.75) * (0.45 + 30 * child_width)
            todo.append((_shoot(points[at], heading, length, child_width, tortuosity, rng), child_width, depth + 1))
            side = -side if rng.random() < 0.8 else side
            at += int(rng.uniform(0.11, 0.3) / _STEP)
    return branches


def paint(branches: list[Branch], radius: int, share: float = 1.0) -> np.ndarray:
    """Return the vessel coverage of each pixel of the square around the field.

    Parameters
    ----------
    branches
        Vessels in field radii.
    radius
        Pixels of the field's radius.
    share
        Share of the width to paint (the light reflex on an artery is a third of it).

    Returns
    -------
    density
        float32 in [0, 1], shape (2 * radius, 2 * radius).
    """
    side = 2 * radius * _SUPERSAMPLE
    canvas = np.zeros((side, side), np.uint8)
    pieces = []
    for branch in branches:
        pixels = np.round((branch.points + 1) * radius * _SUPERSAMPLE * 2**_SHIFT).astype(np.int32)
        thickness = (branch.widths * share * radius * _SUPERSAMPLE).tolist()
        for first in range(0, len(pixels) - 1, 5):
            pieces.append((thickness[first], pixels[first : first + 6]))
    for thickness, line in sorted(pieces, key=lambda piece: piece[0]):  # thick over thin
        # Absorption depends on the depth of blood: a vessel thinner than five drawn pixels is also paler.
        shade = int(255 * min(1.0, 0.28 + 0.145 * thickness))
        cv2.polylines(canvas, [line], False, shade, max(1, round(thickness)), cv2.LINE_AA, _SHIFT)
    small = cv2.resize(canvas, (2 * radius, 2 * radius), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) * np.float32(1 / 255)
