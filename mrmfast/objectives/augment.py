"""Augmentation of the views that contrastive objectives compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le
from pydantic import AllowInfNan

from mrmfast.batch import Photometric, ViewSpec
from mrmfast.config import Share

CropShare = Annotated[float, AllowInfNan(False), Gt(0), Le(1)]


@dataclass(frozen=True)
class AugmentConfig:
    """How a view is changed, beside rotation and flip of the ``data`` section.

    Attributes
    ----------
    crop : (float, float)
        Range of the crop's share of the image's area.
    brightness, contrast, saturation, hue : float
        Strengths of the colour jitter.
    jitter, grey, blur, solarise : float
        Probabilities.
    """

    crop: tuple[CropShare, CropShare] = (0.08, 1.0)
    brightness: Share = 0.8
    contrast: Share = 0.8
    saturation: Share = 0.8
    hue: Annotated[Share, Le(0.5)] = 0.2
    jitter: Share = 0.8
    grey: Share = 0.2
    blur: Share = 0.5
    solarise: Share = 0.0

    def view(self, size: int | None = None) -> ViewSpec:
        """Return the recipe of a view with sides of `size` pixels, ``data.image_size`` by default."""
        colour = Photometric(
            self.brightness,
            self.contrast,
            self.saturation,
            self.hue,
            jitter=self.jitter,
            grey=self.grey,
            blur=self.blur,
            solarise=self.solarise,
        )
        return ViewSpec(size=size, crop=self.crop, photometric=colour)
