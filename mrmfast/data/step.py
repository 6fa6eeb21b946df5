"""A rank's part of a global batch: what the loader knows of it before its images are decoded."""

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
    """A rank's part of a global batch on its way through the image backend.

    Attributes
    ----------
    start, end : int
        Stream positions around the global batch.
    piece : Slice
        This rank's samples.
    packed : list of Tensor
        Their genetics, packed.
    present : Tensor, bool, (n, modalities)
    photometric : list of (Tensor or None), float32, (n, K) each
        Parameters of each view's changes of colour.
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

        From pageable memory a copy to the GPU makes this process wait for all work queued before it.
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
            The images of the step, and its masks.
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
    """Return a decoded batch without the images that cannot be decoded."""
    good = torch.from_numpy(~decoded.bad)
    mask = None if decoded.mask is None else decoded.mask[good.to(decoded.mask.device)]
    views = tuple(view[good.to(view.device)] for view in decoded.views)
    return DecodedBatch(views, decoded.bad[~decoded.bad], mask)
