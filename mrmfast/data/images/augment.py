"""Augmentation parameters as functions of (seed, epoch, sample, view), the same for every decoding backend.

A view is one affine map of the stored image: crop, rotation and left-right flip together. Its colours are changed
later, on the device, with the parameters that are drawn here (``mrmfast.ops.photometric``).

Every number is a hash of what it is for (:func:`mrmfast.data.sampling.draws.uniform`). View v takes its numbers from
the streams 256 v .. 256 v + 255, so views are independent of each other, and a view has the same geometry and colours
however many others there are.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from mrmfast.batch import PHOTOMETRIC, Photometric, ViewSpec
from mrmfast.data.sampling.draws import uniform
from mrmfast.data.sampling.sampler import Slice
from mrmfast.errors import UserError

# Streams of a view. The first two are those that the only view of earlier versions had.
ANGLE, FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, BLUR, SIGMA, SOLARISE = range(11)
CROP_LEFT, CROP_TOP, CROP_AREA, CROP_RATIO = 11, 12, 16, 32  # the last two: one stream for each of ATTEMPTS
STREAMS_PER_VIEW = 256
MAX_VIEWS = 256  # the order of samples draws from the streams from 1 << 16 on
ATTEMPTS = 10  # of a crop to fit into the image, as in torchvision
TOLERANCE = 0.05  # pixels of a needed side that float32 matrices may be wrong by
RATIO = (3 / 4, 4 / 3)  # width to height of a crop


def resolve_views(views: tuple[ViewSpec, ...], *, size: int, rotation: float, flip: float) -> tuple[ViewSpec, ...]:
    """Fill in what views leave to the settings of ``data``.

    Parameters
    ----------
    views : tuple of ViewSpec
        At least one.
    size : int
        ``data.image_size``, pixels.
    rotation : float
        ``data.rotation``, degrees.
    flip : float
        ``data.flip``, a probability.

    Returns
    -------
    tuple of ViewSpec
        Of these, ``size``, ``rotation`` and ``flip`` are numbers.

    Raises
    ------
    UserError
        No view, or more than ``MAX_VIEWS``.
    """
    if not 1 <= len(views) <= MAX_VIEWS:
        raise UserError(f"{len(views)} views of a sample: an objective asks for 1 to {MAX_VIEWS}")
    return tuple(
        replace(
            view,
            size=size if view.size is None else view.size,
            rotation=rotation if view.rotation is None else view.rotation,
            flip=flip if view.flip is None else view.flip,
        )
        for view in views
    )


def plain_view(view: ViewSpec) -> ViewSpec:
    """Return a view of the same size without augmentation."""
    return ViewSpec(size=view.size, rotation=0.0, flip=0.0)


def draw_matrices(piece: Slice, view: ViewSpec, *, seed: int, number: int = 0) -> np.ndarray:
    """Draw crop, rotation and flip of one view of every sample of a slice.

    Parameters
    ----------
    piece : Slice
        n samples with their epochs.
    view : ViewSpec
        From :func:`resolve_views`.
    seed : int
    number : int
        Which view it is; decides the streams of random numbers.

    Returns
    -------
    ndarray of float32, shape (n, 2, 3)
        See :func:`warp_matrices`.
    """
    assert view.size is not None and view.rotation is not None and view.flip is not None, "resolve_views comes first"
    stream = number * STREAMS_PER_VIEW
    turn = 2 * uniform(seed, piece.epoch, piece.sample, stream + ANGLE) - 1
    mirrored = uniform(seed, piece.epoch, piece.sample, stream + FLIP) < view.flip
    box = None if view.crop is None else draw_crops(piece, view.crop, seed=seed, stream=stream)
    return warp_matrices(turn * view.rotation, mirrored, view.size, box)


def draw_crops(piece: Slice, area: tuple[float, float], *, seed: int, stream: int) -> np.ndarray:
    """Draw boxes as torchvision's ``RandomResizedCrop`` does, but not rounded to whole pixels.

    The share of the area is uniform in `area`, the logarithm of width to height uniform in that of ``RATIO``. A box
    that does not fit is drawn again, ``ATTEMPTS`` times in all; after that the box is the whole image.

    Parameters
    ----------
    piece : Slice
        n samples with their epochs.
    area : (float, float)
        Range of the share of the image's area.
    seed, stream : int

    Returns
    -------
    ndarray of float64, shape (n, 4)
        Left, top, width, height, as shares of the image's side.
    """

    def draw(first: int, count: int = 1) -> np.ndarray:
        return np.stack([uniform(seed, piece.epoch, piece.sample, stream + first + turn) for turn in range(count)])

    areas = area[0] + (area[1] - area[0]) * draw(CROP_AREA, ATTEMPTS)
    low, high = np.log(RATIO)
    ratios = np.exp(low + (high - low) * draw(CROP_RATIO, ATTEMPTS))
    widths, heights = np.sqrt(areas * ratios), np.sqrt(areas / ratios)
    fits = (widths <= 1) & (heights <= 1)
    first, some = fits.argmax(0), fits.any(0)
    sample = np.arange(len(piece))
    width, height = (np.where(some, sides[first, sample], 1.0) for sides in (widths, heights))
    left, top = draw(CROP_LEFT)[0] * (1 - width), draw(CROP_TOP)[0] * (1 - height)
    return np.stack([left, top, width, height], -1)


def warp_matrices(angle: np.ndarray, flip: np.ndarray, size: int, box: np.ndarray | None = None) -> np.ndarray:
    """Return maps from output to input pixels: a crop, rotated about its centre, then flipped left to right.

    Parameters
    ----------
    angle : ndarray, shape (n,)
        Degrees.
    flip : ndarray of bool, shape (n,)
    size : int
        Side of the square output, pixels; pixel centres lie at halves. The input is measured as if it had the same
        side: whoever warps an image of another side scales the matrix.
    box : ndarray, shape (n, 4), optional
        Left, top, width, height of the crop, as shares of the side; the whole image by default.

    Returns
    -------
    ndarray of float32, shape (n, 2, 3)

    Examples
    --------
    The right half of the upper half, enlarged to 4 pixels: the first output pixel's centre is at (2.25, 0.25).

    >>> box = np.array([[0.5, 0.0, 0.5, 0.5]])
    >>> warp_matrices(np.zeros(1), np.zeros(1, bool), 4, box) @ np.array([0.5, 0.5, 1.0])
    array([[2.25, 0.25]])
    """
    radians = np.deg2rad(angle)
    cosine, sine = np.cos(radians), np.sin(radians)
    mirror = np.where(flip, -1.0, 1.0)
    linear = np.stack([np.stack([cosine * mirror, -sine], -1), np.stack([sine * mirror, cosine], -1)], -2)
    centre = np.full((len(angle), 2, 1), size / 2)
    centre_of_crop = centre
    if box is not None:
        linear = box[:, 2:, None] * linear
        centre_of_crop = ((box[:, :2] + box[:, 2:] / 2) * size)[..., None]
    return np.concatenate([linear, centre_of_crop - linear @ centre], -1).astype(np.float32)


def needed_side(matrices: np.ndarray, size: int) -> np.ndarray:
    """Return how large an image must be so that no view of it is enlarged.

    A crop of a half of the side needs an image of twice the view's side; without a crop the view's side is enough.

    Parameters
    ----------
    matrices : ndarray, shape (n, 2, 3)
        See :func:`warp_matrices`.
    size : int
        Side of the view, pixels.

    Returns
    -------
    ndarray of int64, shape (n,)
        Pixels.
    """
    linear = matrices[:, :, :2].astype(np.float64)
    # The smaller singular value is the step, in input pixels, of the direction in which the view is enlarged most.
    squares, determinant = np.square(linear).sum((1, 2)), np.linalg.det(linear)
    step = np.sqrt((squares - np.sqrt(np.maximum(0, squares**2 - 4 * determinant**2))) / 2)
    return np.ceil(size / step - TOLERANCE).astype(np.int64)


def largest_needed_side(view: ViewSpec) -> int:
    """Return the largest side that :func:`needed_side` gives for any crop of a view."""
    assert view.size is not None, "resolve_views comes first"
    narrowest = 1.0 if view.crop is None else math.sqrt(view.crop[0] * RATIO[0])
    return math.ceil(view.size / narrowest)


def draw_photometric(piece: Slice, recipe: Photometric, *, seed: int, number: int = 0) -> np.ndarray:
    """Draw the changes of colour of one view of every sample of a slice.

    Parameters
    ----------
    piece : Slice
        n samples with their epochs.
    recipe : Photometric
    seed : int
    number : int
        Which view it is.

    Returns
    -------
    ndarray of float32, shape (n, K)
        Columns as in ``mrmfast.batch.PHOTOMETRIC``.
    """

    def draw(what: int) -> np.ndarray:
        return uniform(seed, piece.epoch, piece.sample, number * STREAMS_PER_VIEW + what)

    def factor(strength: float, what: int) -> np.ndarray:
        low, high = max(0.0, 1 - strength), 1 + strength
        return np.where(jittered, low + (high - low) * draw(what), 1.0)

    jittered = draw(JITTER) < recipe.jitter
    low, high = recipe.blur_sigma
    columns = {
        "brightness": factor(recipe.brightness, BRIGHTNESS),
        "contrast": factor(recipe.contrast, CONTRAST),
        "saturation": factor(recipe.saturation, SATURATION),
        "hue": np.where(jittered, recipe.hue * (2 * draw(HUE) - 1), 0.0),
        "grey": draw(GREY) < recipe.grey,
        "blur": np.where(draw(BLUR) < recipe.blur, low + (high - low) * draw(SIGMA), 0.0),
        "solarise": draw(SOLARISE) < recipe.solarise,
    }
    return np.stack([columns[name] for name in PHOTOMETRIC], -1).astype(np.float32)
