"""A rank's part of a global batch, before its images are decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrmfast.batch import Batch
from mrmfast.data.images.backend import DecodedBatch
from mrmfast.data.sampling.sampler import Slice


@dataclass(frozen=True)
class Step:
    """A rank's part of a global batch while the image backend decodes its images.

    Attributes
    ----------
    start, end : int
        Stream positions around the global batch.
    piece : Slice
        This rank's samples.
    packed : list of Tensor
        Packed genetics of the samples, one tensor per modality.
    present : Tensor, bool, (n, modalities)
    photometric : list of (Tensor or None), float32, (n, K) each
        Photometric parameters of each view.
    target : Tensor or None
        Labels; masks come with the images.
    """

    start: int
    end: int
    piece: Slice
    packed: list[Tensor]
    present: Tensor
    photometric: list[Tensor | None]
    target: Tensor | None

    def pinned(self) -> Step:
        """Return the step with its tensors in pinned memory.

        A copy from pageable memory to the GPU would make this process wait for all work queued before the copy.
        """
        return Step(
            self.start,
            self.end,
            self.piece,
            [part.pin_memory() for part in self.packed],
            self.present.pin_memory(),
            [None if part is None else part.pin_memory() for part in self.photometric],
            None if self.target is None else self.target.pin_memory(),
        )

    def batches(self, decoded: DecodedBatch, keys: Sequence[str], size: int) -> Iterator[Batch]:
        """Yield micro-batches of at most `size` samples.

        Parameters
        ----------
        decoded : DecodedBatch
            Images and masks of the step.
        keys : sequence of str, length n
        size : int
        """
        target = self.target if decoded.mask is None else decoded.mask
        for start in range(0, len(self.piece), size):
            part = slice(start, start + size)
            yield Batch(
                views=tuple(view[part] for view in decoded.views),
                photometric=tuple(None if drawn is None else drawn[part] for drawn in self.photometric),
                packed=tuple(packed[part] for packed in self.packed),
                present=self.present[part],
                target=None if target is None else target[part],
                keys=tuple(keys[part]),
                epochs=tuple(self.piece.epoch[part].tolist()),
                end=self.end,
            )


def without_bad(decoded: DecodedBatch) -> DecodedBatch:
    """Return a decoded batch without the samples that cannot be decoded."""
    good = torch.from_numpy(~decoded.bad)
    mask = None if decoded.mask is None else decoded.mask[good.to(decoded.mask.device)]
    views = tuple(view[good.to(view.device)] for view in decoded.views)
    return DecodedBatch(views, decoded.bad[~decoded.bad], mask)
