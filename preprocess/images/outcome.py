"""What an image preprocessor makes of one source file: images, an exclusion by quality control, or nothing readable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


class Unreadable(Exception):  # noqa: N818 - a verdict on a file
    """A file that should be an image and cannot be read; the message says why, without naming the file."""


class Excluded(Exception):  # noqa: N818 - a verdict on a file
    """A readable file that quality control excludes; the message is the reason, used as a counter's name."""


@dataclass(frozen=True)
class ProcessedImage:
    """One finished image.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (size, size, 3), BGR
    metadata : dict
        Goes into the sample's JSON beside the participant.
    suffix : str
        Appended to the file's number to make the key, where one file gives several images.
    """

    pixels: np.ndarray
    metadata: dict[str, Any]
    suffix: str = ""


@dataclass(frozen=True)
class Outcome:
    """What one file became: its images, and counts worth reporting."""

    images: list[ProcessedImage]
    note: dict[str, Any] = field(default_factory=dict)
