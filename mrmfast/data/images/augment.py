"""Augmentation parameters as functions of (seed, epoch, sample), the same for every decoding backend."""

from __future__ import annotations

import numpy as np

from mrmfast.data.sampling.sampler import Slice, uniform

ANGLE, FLIP = 0, 1  # streams of plan.uniform


def draw_matrices(piece: Slice, *, seed: int, rotation: float, flip: float, size: int) -> np.ndarray:
    """Draw rotation and flip of every sample of a slice.

    Parameters
    ----------
    piece : Slice
        n samples with their epochs.
    seed : int
    rotation : float
        Largest angle, degrees; drawn uniformly from both directions (paper: 20).
    flip : float
        Probability of a left-right flip (paper: 0.5).
    size : int
        Side of the image, pixels.

    Returns
    -------
    ndarray of float32, shape (n, 2, 3)
        See :func:`warp_matrices`.
    """
    turn = 2 * uniform(seed, piece.epoch, piece.sample, ANGLE) - 1
    mirrored = uniform(seed, piece.epoch, piece.sample, FLIP) < flip
    return warp_matrices(turn * rotation, mirrored, size)


def warp_matrices(angle: np.ndarray, flip: np.ndarray, size: int) -> np.ndarray:
    """Return maps from output to input pixels: rotation about the centre, then a left-right flip.

    Parameters
    ----------
    angle : ndarray, shape (n,)
        Degrees.
    flip : ndarray of bool, shape (n,)
    size : int
        Side of the square image, pixels; its centre is at size / 2 (pixel centres lie at halves).

    Returns
    -------
    ndarray of float32, shape (n, 2, 3)
    """
    radians = np.deg2rad(angle)
    cosine, sine = np.cos(radians), np.sin(radians)
    mirror = np.where(flip, -1.0, 1.0)
    linear = np.stack([np.stack([cosine * mirror, -sine], -1), np.stack([sine * mirror, cosine], -1)], -2)
    centre = np.full((len(angle), 2, 1), size / 2)
    return np.concatenate([linear, centre - linear @ centre], -1).astype(np.float32)
