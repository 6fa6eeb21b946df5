"""The outcome of one source file: images, an exclusion by quality control, or an unreadable file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# What the user can do about an exclusion, by its reason.
REMEDIES = {
    "no circle": "--detector none takes images without a black surround as they are",
    "pixel size not recorded": "--mpp states it",
    "pixel size implausible": "--mpp states it",
    "scanned below the magnification": "lower --magnification",
}


class Unreadable(Exception):  # noqa: N818 - a verdict on a file
    """An image file cannot be read; the message is the reason, without the file's name."""


class Excluded(Exception):  # noqa: N818 - a verdict on a file
    """Quality control excludes a readable file; the message is the reason and the name of its counter."""


@dataclass(frozen=True)
class ProcessedImage:
    """One finished image.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (size, size, 3), BGR
    metadata : dict
        Added to the sample's JSON with the participant.
    suffix : str
        Appended to the file's number in the key if one file gives several images.
    """

    pixels: np.ndarray
    metadata: dict[str, Any]
    suffix: str = ""


@dataclass(frozen=True)
class Outcome:
    """The images of one file, and what the report says of the file.

    Attributes
    ----------
    images : list of ProcessedImage
    note : dict
        Counts.
    remarks : tuple of str
        What was converted or looked wrong; the report and the summary count files by remark.
    """

    images: list[ProcessedImage]
    note: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
