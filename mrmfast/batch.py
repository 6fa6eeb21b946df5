"""The batch that the loader hands to the training step, and the legend of shape suffixes.

Names of tensors end in their shape: B samples, N tokens (M genome tokens where both appear), D width, H heads,
d width of a head, F genome features, C colour channels, K photometric parameters, P pixel values of a patch, T tiles of
a grouped product. ``x_BND`` is (samples, tokens, width).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mrmfast.errors import UserError

# ImageNet's, RGB in 0..1 (paper, settings).
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Columns of a view's photometric parameters, in the order in which the changes are applied. Brightness, contrast and
# saturation are factors (1: no change), hue is a share of the colour circle (0: no change), grey and solarise are 0 or
# 1, blur is the standard deviation in pixels (0: no change).
PHOTOMETRIC = ("brightness", "contrast", "saturation", "hue", "grey", "blur", "solarise")

LabelKind = Literal["class", "multi_hot", "values", "mask"]


@dataclass(frozen=True)
class Photometric:
    """How the colours of a view are changed at random; the changes themselves are ``mrmfast.ops.photometric``.

    Attributes
    ----------
    brightness, contrast, saturation, hue : float
        Strengths as in torchvision's ``ColorJitter``: a factor is uniform in ``[max(0, 1 - strength), 1 + strength]``,
        the hue shift uniform in ``[-strength, strength]`` of the colour circle, with a strength of at most 0.5.
    jitter, grey, blur, solarise : float
        Probability of each change; ``jitter`` decides on the first four together.
    blur_sigma : (float, float)
        Range of the Gaussian's standard deviation, pixels.
    solarise_threshold : int
        Bytes from this value on are inverted.

    Raises
    ------
    UserError
        A value out of range.

    Examples
    --------
    SimCLR's recipe at strength 1 is
    ``Photometric(0.8, 0.8, 0.8, 0.2, jitter=0.8, grey=0.2, blur=0.5)``.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    solarise: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_threshold: int = 128

    def __post_init__(self) -> None:
        for name, high in (
            *((name, float("inf")) for name in ("brightness", "contrast", "saturation")),
            ("hue", 0.5),
            *((name, 1.0) for name in ("jitter", "grey", "blur", "solarise")),
            ("solarise_threshold", 256),
        ):
            if not 0 <= getattr(self, name) <= high:
                raise UserError(f"photometric.{name}={getattr(self, name)}: must be 0 to {high:g}")
        low, high = self.blur_sigma
        if not 0 < low <= high < float("inf"):
            raise UserError(
                f"photometric.blur_sigma={self.blur_sigma}: must be two positive numbers in ascending order"
            )

    @property
    def changes(self) -> bool:
        """Whether any change can happen at all."""
        jitter = self.jitter > 0 and any((self.brightness, self.contrast, self.saturation, self.hue))
        return jitter or any((self.grey, self.blur, self.solarise))


@dataclass(frozen=True)
class ViewSpec:
    """One of the images that are made of each sample; ``ViewSpec()`` is the plain image of ``data.image_size``.

    Attributes
    ----------
    size : int, optional
        Side, pixels; ``data.image_size`` by default.
    crop : (float, float), optional
        Range of a random-resized crop's share of the image's area (aspect ratio 3/4 to 4/3, drawn as torchvision's
        ``RandomResizedCrop`` does); the whole image by default.
    rotation : float, optional
        Largest rotation, degrees; ``data.rotation`` by default.
    flip : float, optional
        Probability of a left-right flip; ``data.flip`` by default.
    photometric : Photometric, optional
        Changes of colours; none by default.

    Raises
    ------
    UserError
        A value out of range.
    """

    size: int | None = None
    crop: tuple[float, float] | None = None
    rotation: float | None = None
    flip: float | None = None
    photometric: Photometric | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise UserError(f"view.size={self.size}: must be at least 1")
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise UserError(
                f"view.crop={self.crop}: must be two shares of the area in ascending order, above 0 up to 1"
            )
        if self.rotation is not None and not 0 <= self.rotation <= 180:
            raise UserError(f"view.rotation={self.rotation}: must be 0 to 180")
        if self.flip is not None and not 0 <= self.flip <= 1:
            raise UserError(f"view.flip={self.flip}: must be 0 to 1")


class LabelSpec(NamedTuple):
    """What the targets of a dataset are; enough to build a task's head.

    Attributes
    ----------
    kind : {"class", "multi_hot", "values", "mask"}
    names : tuple of str
        The classes in the order of their numbers, the columns, or the channels of the mask.
    """

    kind: LabelKind
    names: tuple[str, ...]


class ModalitySpec(NamedTuple):
    """How one modality is packed; a tuple, so that kernels take it as it is.

    Attributes
    ----------
    name : str
        E.g. ``snps``.
    encoding : str
        ``genotype`` (2 bits a feature), ``binary`` (1 bit) or ``float``: see :mod:`mrmfast.formats.genetics`.
    n_features : int
    """

    name: str
    encoding: str
    n_features: int


@dataclass(frozen=True)
class GenomeSpec:
    """What the genome vector x_G is made of; enough to build the model without the store.

    Attributes
    ----------
    modalities : tuple of ModalitySpec
        In the order in which their features make up x_G.
    groups : tuple of int
        Features per genome token, in order; they add up to ``n_features``.
    group_names : tuple of str
        ``modality/group``: a resumed run must have the same.
    fill : Tensor, shape (F,), float32
        What a missing value becomes on input.
    """

    modalities: tuple[ModalitySpec, ...]
    groups: tuple[int, ...]
    group_names: tuple[str, ...]
    fill: Tensor

    @property
    def n_features(self) -> int:
        """Length of x_G."""
        return sum(self.groups)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    Attributes
    ----------
    views : tuple of Tensor, uint8 or float32, shape (B, 3, S, S) each
        One image per :class:`ViewSpec`, each of its own size S. RGB, 0..255, to be normalised on the device; with
        ``data.pixels=float32`` already normalised.
    photometric : tuple of (Tensor or None), float32, shape (B, K) each
        Per view, the columns of ``PHOTOMETRIC``; None where nothing is to be done.
    packed : tuple of Tensor
        Per modality, shape (B, packed width): see ``mrmfast.data.genetics.store``. Empty when training on images only.
    present : Tensor, bool, shape (B, modalities)
        Which participants have which modality.
    target : Tensor or None
        None without ``data.labels``. ``class``: int64 (B,). ``multi_hot``: float32 (B, C). ``values``: float32 (B, C),
        NaN where a value is missing. ``mask``: uint8 (B, C, S, S) in the geometry of view 0, 255 outside the image
        and where nothing is known.
    keys : tuple of str
        Sample keys (running numbers, no participant ids).
    epochs : tuple of int
        Which epoch each sample belongs to; a batch may cross an epoch's end.
    end : int
        Position of the stream after the global batch that this is part of: where to go on once it is consumed.
    """

    views: tuple[Tensor, ...]
    photometric: tuple[Tensor | None, ...]
    packed: tuple[Tensor, ...]
    present: Tensor
    target: Tensor | None
    keys: tuple[str, ...]
    epochs: tuple[int, ...]
    end: int

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all that is copied to a device."""
        optional = [part for part in (*self.photometric, self.target) if part is not None]
        return (*self.views, *self.packed, self.present, *optional)

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device, without waiting where the memory is pinned."""

        def copy(part: Tensor) -> Tensor:
            return part.to(device, non_blocking=True)

        return replace(
            self,
            views=tuple(copy(view) for view in self.views),
            photometric=tuple(None if part is None else copy(part) for part in self.photometric),
            packed=tuple(copy(part) for part in self.packed),
            present=copy(self.present),
            target=None if self.target is None else copy(self.target),
        )
