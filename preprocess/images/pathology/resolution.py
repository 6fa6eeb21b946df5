"""Microns per pixel of a slide: stated by hand, recorded as pixel size, or derived from the objective power.

The pixel size comes first: an objective power is a nominal value, and files keep it when their pixels are resampled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import openslide

from preprocess.images.outcome import Excluded

# At an objective power of 1 a pixel is 10 micrometres wide.
MICRONS_AT_1X = 10.0
# Microns per pixel of a microscope's image. Placeholders lie outside: 72 dpi is 353, libvips' default 1,000.
PLAUSIBLE = (0.05, 10.0)
# Power and pixel size agree if they differ by less than this factor.
AGREEMENT = 4 / 3
_MICRONS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}
_OME_SIZE = re.compile(r'\bPhysicalSizeX="([^"]+)"')
_OME_UNIT = re.compile(r'\bPhysicalSizeXUnit="([^"]+)"')


@dataclass(frozen=True)
class Resolution:
    """The resolution of a slide.

    Attributes
    ----------
    mpp : float
        Microns per pixel at full resolution.
    remarks : tuple of str
        What is wrong with the recorded values.
    """

    mpp: float
    remarks: tuple[str, ...] = ()

    @property
    def power(self) -> float:
        """The magnification (objective power) that corresponds to the pixel size."""
        return MICRONS_AT_1X / self.mpp


def find_resolution(properties: Mapping[str, str], stated: float | None) -> Resolution:
    """Find the resolution of a slide.

    Parameters
    ----------
    properties : mapping
        OpenSlide's properties. OpenSlide derives a pixel size from TIFF tags with a unit, but does not read OME-XML.
    stated : float, optional
        Microns per pixel stated by hand.

    Raises
    ------
    Excluded
        Nothing is recorded, or the recorded pixel size is implausible and there is no objective power.
    """
    if stated is not None:
        return Resolution(stated)
    recorded = _ome_pixel(properties) or _number(properties, openslide.PROPERTY_NAME_MPP_X)
    pixel = recorded if recorded and PLAUSIBLE[0] <= recorded <= PLAUSIBLE[1] else None
    power = _number(properties, openslide.PROPERTY_NAME_OBJECTIVE_POWER)
    remarks = ("recorded pixel size implausible, objective power used",) if recorded and not pixel and power else ()
    if pixel and power and not 1 / AGREEMENT < pixel * power / MICRONS_AT_1X < AGREEMENT:
        remarks = ("objective power and pixel size differ by a third or more: pixel size used",)
    if pixel:
        return Resolution(pixel, remarks)
    if power:
        return Resolution(MICRONS_AT_1X / power, remarks)
    raise Excluded("pixel size implausible" if recorded else "pixel size not recorded")


def _number(properties: Mapping[str, str], name: str) -> float | None:
    """Return a positive number; None if it is absent or something else."""
    try:
        value = float(properties.get(name, ""))
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _ome_pixel(properties: Mapping[str, str]) -> float | None:
    """Return the pixel size of the first image of OME-XML in microns."""
    comment = properties.get(openslide.PROPERTY_NAME_COMMENT, "")
    size, unit = _OME_SIZE.search(comment), _OME_UNIT.search(comment)
    if not size or "<OME" not in comment:
        return None
    factor = _MICRONS.get(unit[1] if unit else "µm")
    value = _number({"size": size[1]}, "size")
    return value * factor if value and factor else None
