"""From JPEG bytes to augmented pictures: the contract of the image backends, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mrmfast.meters import Meters

Backend = Literal["auto", "dali", "cpu"]
Pixels = Literal["uint8", "float32"]
Fed = tuple[list[np.ndarray], np.ndarray, list[str]]
LARGEST = 100_000_000  # pixels of a picture that is decoded at all; a header can promise more than memory holds


class Images(Protocol):
    """A stream of decoded, augmented batches, worked on in the background."""

    def run(self) -> tuple[Tensor, np.ndarray]:
        """Wait for the next batch.

        Returns
        -------
        image_BCHW : Tensor, uint8 or float32, shape (B, 3, size, size)
            On the device; uint8 in channels-last memory order, float32 normalised and channels first. A picture that
            cannot be decoded is black.
        bad : ndarray of bool, shape (B,)
            Which those are: not a whole JPEG, damaged, or larger than ``LARGEST``.

        Raises
        ------
        StopIteration
            The source has raised it, and all batches before were handed out.
        Exception
            Whatever else the source raised.
        """
        ...

    def close(self) -> None:
        """Stop the threads and let go of everything; also in the middle of the stream."""
        ...


def open_images(
    backend: Backend,
    source: Callable[[], Fed],
    *,
    batch: int,
    stored_size: int,
    size: int,
    device: torch.device,
    threads: int,
    depth: int,
    meters: Meters,
    pixels: Pixels = "uint8",
) -> Images:
    """Start a backend.

    Parameters
    ----------
    backend : {"auto", "dali", "cpu"}
        ``auto``: DALI on a GPU, the CPU path without one, where DALI's warp is the slowest part by far.
    source : callable
        Called once per batch, in order and ahead of :meth:`Images.run`, from one thread; returns JPEG bytes (list of B
        uint8 arrays), warp matrices (float32, (B, 2, 3), :func:`.augment.warp_matrices`) and sample keys.
    batch : int
        Largest B.
    stored_size, size : int
        Side of the pictures in the shards and of the output, pixels.
    device : torch.device
        Where the batches are wanted.
    threads : int
        CPU threads.
    depth : int
        Batches under way at once.
    meters : Meters
        Stages ``decode`` and ``augment``.
    pixels : {"uint8", "float32"}
        Bytes as they are, or normalised by ``PIXEL_MEAN`` and ``PIXEL_STD`` of :mod:`mrmfast.batch`.
    """
    options: dict[str, Any] = {"batch": batch, "stored_size": stored_size, "size": size, "device": device}
    options |= {"threads": threads, "depth": depth, "meters": meters, "pixels": pixels}
    if backend == "dali" or (backend == "auto" and device.type == "cuda"):
        from mrmfast.data.images.dali import DALIImages  # data/ imports without DALI

        return DALIImages(source, **options)
    from mrmfast.data.images.cpu import CPUImages

    return CPUImages(source, **options)
