"""One fundus image, drawn from visible traits.

All images are drawn as a right eye (optic disc on the right) in the square around the field of view, with lengths in
field radii; left eyes are mirrored. Colours are RGB in [0, 1], float32, with shape (3, side, side): channel planes take
a quarter of the time of interleaved channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from preprocess.simulate import vessels


@dataclass(frozen=True)
class Camera:
    """A camera: image size and field radius in pixels; the field is cropped above and below if 2 * radius > height."""

    width: int
    height: int
    radius: int
    tint: tuple[float, float, float]
    notch: bool


CAMERAS = (
    Camera(640, 640, 310, (1.0, 1.0, 1.0), False),
    Camera(587, 576, 276, (1.05, 1.06, 1.0), True),
    Camera(860, 600, 322, (1.04, 0.9, 0.95), True),
    Camera(768, 576, 268, (0.92, 1.02, 1.25), False),
)

_FAIR, _DARK = np.array([0.90, 0.45, 0.27], np.float32), np.array([0.56, 0.25, 0.115], np.float32)
_DISC, _CUP = np.array([0.96, 0.68, 0.42], np.float32), np.array([1.0, 0.90, 0.68], np.float32)
_VEIN = np.array([0.36, 0.58, 0.46], np.float32)  # share of light absorbed
_ARTERY = np.array([0.16, 0.46, 0.38], np.float32)
_BLOOD = np.array([0.42, 0.74, 0.62], np.float32)
_EXUDATE = np.array([0.98, 0.86, 0.48], np.float32)
_DRUSEN = np.array([0.95, 0.72, 0.38], np.float32)
_DISC_TO_FOVEA = 0.64
_SHIFT = 4


def _noise(side: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise with a standard deviation of about 0.7, float32, shape (side, side)."""
    return cv2.resize(
        rng.standard_normal((cells, cells), dtype=np.float32), (side, side), interpolation=cv2.INTER_CUBIC
    )


def _distance(grid: tuple[np.ndarray, np.ndarray], centre: np.ndarray) -> np.ndarray:
    """Return the squared distance to a point, float32, shape (side, side)."""
    x, y = grid
    return (x - np.float32(centre[0])) ** 2 + (y - np.float32(centre[1])) ** 2


def _blend(image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Blend a colour into the image, in place, where the mask (side, side) is 1."""
    for plane, level in zip(image, colour, strict=True):
        plane += mask * (level - plane)


def _absorb(image: np.ndarray, mask: np.ndarray, share: np.ndarray) -> None:
    """Reduce the light by a share per channel, in place, where the mask is 1."""
    for plane, level in zip(image, share, strict=True):
        plane *= 1 - mask * level


def _background(
    grid: tuple[np.ndarray, np.ndarray], pigmentation: float, disc: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw choroid and pigment epithelium: choroidal vessels in fair eyes, fine grain in dark eyes."""
    side = grid[0].shape[1]
    colour = _FAIR + np.float32(pigmentation) * (_DARK - _FAIR)
    cloud = 0.05 * _noise(side, 5, rng) + 0.025 * _noise(side, 14, rng) + 0.018 * _noise(side, side // 7, rng)
    # Choroidal vessels are the zero crossings of smooth noise, in patches and blurred.
    ridges = np.exp(-((_noise(side, 26, rng) / 0.4) ** 2)) * (0.5 + 0.5 * np.tanh(_noise(side, 5, rng)))
    shade = 1 + cloud + np.float32(0.15 * (1 - pigmentation) ** 1.5) * (ridges - 0.3)
    # Nerve fibres are thickest around the disc and make it brighter.
    shade += np.float32(0.14) * np.exp(_distance(grid, disc) * np.float32(-1 / (2 * 0.3**2)))
    return shade[None] * colour[:, None, None]


def _macula(image: np.ndarray, grid: tuple[np.ndarray, np.ndarray], fovea: np.ndarray, strength: float) -> None:
    square = _distance(grid, fovea)
    wide = np.exp(square * np.float32(-1 / (2 * 0.17**2)))
    pit = np.exp(square * np.float32(-1 / (2 * 0.045**2)))
    dark = np.float32(strength) * (0.30 * wide + 0.22 * pit)
    _absorb(image, dark, np.array([0.85, 1.0, 1.0], np.float32))


def _optic_disc(
    image: np.ndarray, grid: tuple[np.ndarray, np.ndarray], disc: np.ndarray, size: float, cup: float,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Draw the optic disc; ``size`` is its radius in field radii, ``cup`` the cup-to-disc ratio."""
    radius = image.shape[1] / 2
    reach = int(2 * size * radius) + 4
    column, row = (int((c + 1) * radius) for c in disc)
    window = slice(max(0, row - reach), row + reach), slice(max(0, column - reach), column + reach)
    x, y = grid[0][:, window[1]], grid[1][window[0], :]
    tilt, squeeze = rng.uniform(-0.3, 0.3), rng.uniform(1.03, 1.14)
    across = (x - disc[0]) * np.cos(tilt) + (y - disc[1]) * np.sin(tilt)
    along = (y - disc[1]) * np.cos(tilt) - (x - disc[0]) * np.sin(tilt)
    distance = (np.hypot(across * squeeze, along / squeeze**0.2) / size).astype(np.float32)
    part = image[:, *window]
    halo = np.exp(-((distance - 1.08) ** 2) / (2 * 0.07**2)) * (across < 0) * np.float32(rng.uniform(0, 0.5))
    _blend(part, halo, _DISC * np.float32(0.85))  # crescent on the temporal side
    _blend(part, np.float32(0.93) / (1 + np.exp((distance - 1) / np.float32(0.035))), _DISC)
    cup_distance = np.hypot((across + 0.1 * size * (1 - cup)) / size, along / size).astype(np.float32)
    _blend(part, np.float32(0.85) / (1 + np.exp((cup_distance - np.float32(cup)) / np.float32(0.045))), _CUP)


def _blob(
    mask: np.ndarray, centre: np.ndarray, size: float, ragged: float, shade: float, rng: np.random.Generator
) -> None:
    """Fill an irregular round patch; ``size`` in field radii."""
    radius = mask.shape[0] / 2
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    reach = size * (1 + ragged * rng.standard_normal(12))
    points = (centre + 1 + reach[:, None] * np.column_stack([np.cos(angles), np.sin(angles)])) * radius * 2**_SHIFT
    cv2.fillPoly(mask, [np.round(points).astype(np.int32)], int(255 * shade), cv2.LINE_AA, _SHIFT)


def _lesions(
    image: np.ndarray,
    disc: np.ndarray,
    fovea: np.ndarray,
    lesions: int,
    drusen: int,
    rng: np.random.Generator,
) -> None:
    """Draw microaneurysms, haemorrhages and exudates (``lesions`` in total), and drusen around the macula."""
    side = image.shape[1]
    red, bright, soft = (np.zeros((side, side), np.uint8) for _ in range(3))
    cluster = fovea + rng.normal(0, 0.2, 2)
    for number in range(lesions):
        kind = rng.random()
        centre = rng.uniform(-0.8, 0.8, 2) if number % 2 else cluster + rng.normal(0, 0.22, 2)
        if np.hypot(*(centre - disc)) < 0.22 or np.hypot(*centre) > 0.9:
            centre = fovea + rng.uniform(-0.3, 0.3, 2)
        if kind < 0.45:
            _blob(red, centre, rng.uniform(0.006, 0.011), 0.08, rng.uniform(0.7, 1), rng)
        elif kind < 0.65:
            _blob(red, centre, rng.uniform(0.014, 0.034), 0.2, rng.uniform(0.6, 0.95), rng)
        else:
            for _ in range(int(rng.integers(2, 6))):
                _blob(bright, centre + rng.normal(0, 0.016, 2), rng.uniform(0.004, 0.014), 0.25, 0.9, rng)
    for _ in range(drusen):
        _blob(soft, fovea + rng.normal(0, 0.17, 2), rng.uniform(0.006, 0.017), 0.1, rng.uniform(0.45, 0.8), rng)
    as_share = np.float32(1 / 255)
    _blend(image, cv2.GaussianBlur(soft, (0, 0), side / 420) * as_share, _DRUSEN)
    _absorb(image, cv2.GaussianBlur(red, (0, 0), side / 900) * as_share, _BLOOD)
    _blend(image, bright * as_share, _EXUDATE)


def _illuminate(image: np.ndarray, grid: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> None:
    """Apply vignetting, an off-centre flash, and haze from one side."""
    x, y = grid
    tilt = rng.uniform(-0.13, 0.13, 2).astype(np.float32)
    square = _distance(grid, rng.uniform(-0.2, 0.2, 2))
    light = np.float32(rng.uniform(0.86, 1.16)) * (1.05 - np.float32(rng.uniform(0.16, 0.4)) * square)
    image *= light + tilt[0] * x + tilt[1] * y
    angle = rng.uniform(0, 2 * np.pi)
    reach = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    veil = np.float32(rng.uniform(0, 0.3)) * np.clip((reach - 0.35) / 0.65, 0, 1) ** 2
    _blend(image, veil, np.array([0.55, 0.47, 0.40], np.float32))


def _field(grid: tuple[np.ndarray, np.ndarray], notch: bool) -> np.ndarray:
    """Draw the aperture: 1 inside, 0 outside, one pixel soft, float32, shape (side, side)."""
    radius = grid[0].shape[1] / 2
    distance = np.sqrt(_distance(grid, np.zeros(2)))
    if notch:  # the registration tab at the upper right of many cameras
        tab = np.sqrt(_distance(grid, np.array([0.985 * np.cos(0.78), -0.985 * np.sin(0.78)])))
        distance = np.minimum(distance, tab + np.float32(0.945))
    return np.clip((np.float32(0.992) - distance) * radius + 0.5, 0, 1)


def render_field(traits: dict[str, float], radius: int, notch: bool, rng: np.random.Generator) -> np.ndarray:
    """Draw the square around the field of a right eye.

    Parameters
    ----------
    traits
        The visible traits by name, in the units of ``traits.TRAITS``.
    radius
        Pixels of the field's radius.

    Returns
    -------
    image
        float32 in about [0, 1], RGB planes, black outside the field, shape (3, 2 * radius, 2 * radius).
    """
    axis = (np.arange(2 * radius, dtype=np.float32) + 0.5) / radius - 1
    grid = (axis[None, :], axis[:, None])
    disc = np.array([0.40, -0.02]) + rng.normal(0, (0.06, 0.05))
    turn = rng.normal(0.1, 0.06)  # the fovea lies a little lower than the disc
    fovea = disc + _DISC_TO_FOVEA * np.array([-np.cos(turn), np.sin(turn)])

    image = _background(grid, traits["pigmentation"], disc, rng)
    _macula(image, grid, fovea, rng.uniform(0.75, 1.25))
    _optic_disc(image, grid, disc, traits["disc_size"], traits["cup_ratio"], rng)
    width, tortuosity = traits["vessel_width"], traits["vessel_tortuosity"]
    veins = vessels.grow(disc, fovea, width, tortuosity, True, rng)
    arteries = vessels.grow(disc, fovea, width, tortuosity, False, rng)
    _absorb(image, vessels.paint(veins, radius), _VEIN)
    _absorb(image, vessels.paint(arteries, radius), _ARTERY)
    trunks = [branch for branch in arteries if branch.widths[0] > 0.009]
    image += np.float32(0.1) * vessels.paint(trunks, radius, 0.3)
    _lesions(image, disc, fovea, int(traits["lesion_count"]), int(traits["drusen_count"]), rng)
    _illuminate(image, grid, rng)
    focus = radius / 384 * rng.uniform(0.45, 1.0)
    grain = np.float32(0.011) * rng.standard_normal(image.shape[1:], dtype=np.float32)
    aperture = _field(grid, notch)
    for plane in image:
        plane[:] = (cv2.GaussianBlur(plane, (0, 0), focus) + grain) * aperture
    return image


def photograph(traits: dict[str, float], eye: str, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Return an image as stored: uint8, BGR (OpenCV's order), shape (camera.height, camera.width, 3)."""
    field = render_field(traits, camera.radius, camera.notch, rng)
    planes = [cv2.convertScaleAbs(plane, alpha=255 * tint) for plane, tint in zip(field, camera.tint, strict=True)]
    small = np.maximum(cv2.merge(planes[::-1]), 2)
    if eye == "left":
        small = small[:, ::-1]
    canvas = np.full((camera.height, camera.width, 3), 2, np.uint8)
    left = (camera.width - 2 * camera.radius) // 2 + int(rng.integers(-4, 5))
    top = (camera.height - 2 * camera.radius) // 2
    crop = max(0, -top)
    canvas[max(0, top) : max(0, top) + small.shape[0] - 2 * crop, left : left + small.shape[1]] = small[
        crop : small.shape[0] - crop
    ]
    return canvas
