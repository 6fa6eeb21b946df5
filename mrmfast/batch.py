"""The batch that the loader hands to the training step, and the legend of shape suffixes.

Names of tensors end in their shape: B samples, N tokens (M genome tokens where both appear), D width, H heads,
d width of a head, F genome features, C colour channels, P pixel values of a patch, T tiles of a grouped product.
``x_BND`` is (samples, tokens, width).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# ImageNet's, RGB in 0..1 (paper, settings).
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class GenomeSpec:
    """What the genome vector x_G is made of; enough to build the model without the store.

    Attributes
    ----------
    kinds : tuple of (str, str, int)
        (modality, kind, number of features) in order.
    groups : tuple of int
        Features per genome token, in order; they add up to ``n_features``.
    group_names : tuple of str
        ``modality/group``: a resumed run must have the same.
    fill : Tensor, shape (F,), float32
        What a missing value becomes on input.
    """

    kinds: tuple[tuple[str, str, int], ...]
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
    image_BCHW : Tensor, uint8 or float32, shape (B, 3, S, S)
        RGB, 0..255, to be normalised on the device; with ``data.pixels=float32`` already normalised.
    packed : tuple of Tensor
        Per modality, shape (B, packed width): see ``mrmfast.data.genetics.store``. Empty when training on images only.
    present : Tensor, bool, shape (B, modalities)
        Which participants have which modality.
    keys : tuple of str
        Sample keys (running numbers, no participant ids).
    epochs : tuple of int
        Which epoch each sample belongs to; a batch may cross an epoch's end.
    end : int
        Position of the stream after the global batch that this is part of: where to go on once it is consumed.
    """

    image_BCHW: Tensor
    packed: tuple[Tensor, ...]
    present: Tensor
    keys: tuple[str, ...]
    epochs: tuple[int, ...]
    end: int

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all that is copied to a device: pictures, packed genetics, and who has which."""
        return (self.image_BCHW, *self.packed, self.present)

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to a device, without waiting where the memory is pinned."""
        return replace(
            self,
            image_BCHW=self.image_BCHW.to(device, non_blocking=True),
            packed=tuple(part.to(device, non_blocking=True) for part in self.packed),
            present=self.present.to(device, non_blocking=True),
        )
