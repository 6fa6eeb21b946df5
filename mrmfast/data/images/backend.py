"""From JPEG bytes to augmented images: the interface of the image backends, and the choice of a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mrmfast.batch import ViewSpec
from mrmfast.meters import Meters

Backend = Literal["auto", "dali", "cpu"]
Pixels = Literal["uint8", "float32"]
FUSED = 1.3  # largest reduction by a bilinear warp without visible aliasing; larger ones average pixels first


@dataclass(frozen=True)
class DecodeRequest:
    """One batch to decode and warp.

    Attributes
    ----------
    jpegs : list of ndarray
        The bytes of B images, uint8.
    matrices : tuple of ndarray, float32, (B, 2, 3)
        One array per view: :func:`mrmfast.data.images.augment.warp_matrices`.
    masks : tuple of list
        One list per mask: the bytes of B PNGs (uint8 arrays), None where a sample has no such mask.
    """

    jpegs: list[np.ndarray]
    matrices: tuple[np.ndarray, ...]
    masks: tuple[list[np.ndarray | None], ...] = ()


@dataclass(frozen=True)
class DecodedBatch:
    """The result of a :class:`DecodeRequest`.

    Attributes
    ----------
    views : tuple of Tensor, uint8 or float32, shape (B, 3, S, S)
        One tensor per view, on the device: uint8 in channels-last memory order, or float32, normalised and channels
        first. An image that cannot be decoded is black in all views.
    bad : ndarray of bool, shape (B,)
        Samples that cannot be decoded: the JPEG is refused by :mod:`mrmfast.formats.jpeg` or by libjpeg, or a mask is
        incomplete or damaged.
    mask : Tensor or None, uint8, shape (B, C, S, S)
        All channels of all masks in the geometry of view 0, on the device: nearest neighbour, 255 outside and where
        there is no mask. None without masks.
    """

    views: tuple[Tensor, ...]
    bad: np.ndarray
    mask: Tensor | None = None


@dataclass(frozen=True)
class DecodeSpec:
    """Properties that all batches of a backend share.

    Attributes
    ----------
    views : tuple of ViewSpec
        From :func:`mrmfast.data.images.augment.resolve_views`; the backend reads size and crop only.
    batch : int
        Largest B.
    stored_size : int
        Side of the images in the shards, pixels.
    device : torch.device
        Device of the returned batches.
    threads : int
        CPU threads.
    depth : int
        Batches that are decoded ahead.
    pixels : {"uint8", "float32"}
        Bytes as they are, or normalised by ``PIXEL_MEAN`` and ``PIXEL_STD`` of :mod:`mrmfast.batch`.
    mask_channels : tuple of int
        Channels of each mask.
    """

    views: tuple[ViewSpec, ...]
    batch: int
    stored_size: int
    device: torch.device
    threads: int
    depth: int
    pixels: Pixels = "uint8"
    mask_channels: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Side of each view, pixels."""
        return tuple(view.size or 0 for view in self.views)


class Images(Protocol):
    """A stream of decoded, augmented batches, computed in background threads."""

    def run(self) -> DecodedBatch:
        """Wait for the next batch.

        Raises
        ------
        StopIteration
            The source raised StopIteration, and all earlier batches have been returned.
        Exception
            Any other error of the source.
        """
        ...

    def close(self) -> None:
        """Stop the threads and release all memory, also before the end of the stream."""
        ...


def open_images(backend: Backend, source: Callable[[], DecodeRequest], spec: DecodeSpec, meters: Meters) -> Images:
    """Start a backend.

    Parameters
    ----------
    backend : {"auto", "dali", "cpu"}
        ``auto``: DALI on a GPU, else the CPU path: without a GPU, DALI's warp is by far the slowest stage.
    source : callable
        Called once per batch, in order and ahead of :meth:`Images.run`, from one thread.
    spec : DecodeSpec
    meters : Meters
        Stages ``decode`` and ``augment``.
    """
    if backend == "dali" or (backend == "auto" and spec.device.type == "cuda"):
        from mrmfast.data.images.dali import DALIImages  # data/ imports without DALI

        return DALIImages(source, spec, meters)
    from mrmfast.data.images.cpu import CPUImages

    return CPUImages(source, spec, meters)
