"""Memory of a decoding thread: a reused buffer per image of a group, and the addresses for the warp."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import simplejpeg

from mrmfast.data.images.backend import FUSED
from mrmfast.data.images.warp import SPARE
from mrmfast.formats.jpeg import LARGEST, decode_jpeg, jpeg_ends

# Bytes. libjpeg-turbo writes rows that start at a multiple of 32 bytes with streaming stores, which bypass the caches.
# The warp would then read the image from memory, in up to twice the time. An image therefore starts half a vector after
# a cache line.
ALIGNMENT, OFFSET = 64, 16
REDUCTION = 64  # pixels of a JPEG per pixel of libjpeg's smallest scale (1/8 of each side)


class Slot:
    """Memory of one decoded image, its address, and the array of the current image."""

    def __init__(self, pixels: int) -> None:
        self._whole = np.empty(pixels * 3 + SPARE + ALIGNMENT + OFFSET, dtype=np.uint8)
        start = -self._whole.ctypes.data % ALIGNMENT + OFFSET
        self.buffer = self._whole[start : start + pixels * 3 + SPARE]
        self.address = self.buffer.ctypes.data
        self.image = self.buffer[:0]

    def holds(self, image: np.ndarray) -> bool:
        """Return whether an image lies in this slot. NumPy's ``base`` is the array that owns the memory, not a view."""
        return image.base is self._whole

    def square(self, side: int) -> np.ndarray:
        """Make the start of the memory the current RGB image, and return it."""
        self.image = self.buffer[: side * side * 3].reshape(side, side, 3)
        return self.image


class DecodeMemory:
    """Decode a group of images, one after the other, into reused memory.

    Each image is decoded once, at the smallest of libjpeg's scales (1/8 to 8/8) that suffices for all of its views. A
    view is warped from the decoded image, or, if this is much larger than the view needs, from an averaged copy.

    Parameters
    ----------
    count : int
        Images per group.
    side : int
        Side of the largest square image that is decoded without parsing its header beforehand, pixels.
    sizes : sequence of int
        Side of each view, pixels.

    Attributes
    ----------
    count : int
        Images decoded since :meth:`clear`.
    items : list of ctypes array of int64
        Per view, for each image: its number, the address of the pixels to warp and their side. ``warp_group`` in
        ``warp.c`` takes them.
    line : int
        Address of the row that the warp works in.

    Examples
    --------
    A JPEG of 512 x 512 pixels has two views of 224 pixels. The first view shows the whole image and needs 224 pixels.
    The second view is a crop of half the side and needs 448. libjpeg decodes to 448 (7/8). The second view is warped
    from the decoded image. For the first view 448 is more than 1.3 times 224, so a copy is averaged down to 224.
    """

    def __init__(self, count: int, side: int, sizes: Sequence[int]) -> None:
        # An image that fits has at most LARGEST pixels before it is scaled, so its header is not parsed.
        self._slots = [Slot(min(side * side, LARGEST // REDUCTION)) for _ in range(count)]
        self._large: list[Slot | None] = [None] * count
        self._reduced: list[list[Slot | None]] = [[None] * count for _ in sizes]
        self._line = np.empty(max(sizes) * 3 + SPARE, dtype=np.uint8)
        self.line = self._line.ctypes.data
        self.items = [(ctypes.c_int64 * (3 * count))() for _ in sizes]
        self.count = 0

    def decode(self, jpeg: np.ndarray, number: int, needed: Sequence[int]) -> bool:
        """Decode an image to RGB and add it to the group; return whether it can be decoded.

        Parameters
        ----------
        jpeg : ndarray of uint8
        number : int
            Index of the image in its batch.
        needed : sequence of int
            Per view, the side that the whole image must have so that the view is not enlarged, pixels.
        """
        if not jpeg_ends(jpeg):
            return False
        least = needed[0] if len(needed) == 1 else max(needed)
        slot = self._slots[self.count]
        try:
            image = self._decode(jpeg, slot.buffer, least)
        except ValueError:
            large = self._decode_large(jpeg, least)
            if large is None:
                return False
            image = large
        height, width = image.shape[:2]
        decoded: Slot | None = None
        at = 3 * self.count
        for view, side in enumerate(needed):
            if height != width or height > FUSED * side:
                source, warped = self._reduce(image, view, side), side
            else:
                decoded = decoded or self._keep(image, slot)
                source, warped = decoded, height
            items = self.items[view]
            items[at], items[at + 1], items[at + 2] = number, source.address, warped
        self.count += 1
        return True

    def _decode(self, jpeg: np.ndarray, buffer: np.ndarray, least: int) -> np.ndarray:
        # Tolerant: DALI and nvJPEG do not report libjpeg's warnings, and the verdict is the same on every backend.
        return decode_jpeg(jpeg, least=(least, least), buffer=buffer, tolerant=True)

    def _decode_large(self, jpeg: np.ndarray, least: int) -> np.ndarray | None:
        """Decode an image that is larger than a slot; None if it exceeds LARGEST or is no JPEG."""
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
            if height * width > LARGEST:
                return None
            return self._decode(jpeg, np.empty(height * width * 3, dtype=np.uint8), least)
        except ValueError:
            return None

    def _keep(self, image: np.ndarray, slot: Slot) -> Slot:
        """Return the slot that holds a decoded square image, with SPARE bytes after it."""
        if slot.holds(image):
            slot.image = image
            return slot
        side = len(image)  # larger than a slot, or converted from CMYK
        large = self._large[self.count] = Slot(side * side)
        large.square(side)[:] = image
        return large

    def _reduce(self, image: np.ndarray, view: int, side: int) -> Slot:
        """Average an image that is much larger than a view needs, or not square, down to the needed side."""
        slot = self._reduced[view][self.count]
        if slot is None or len(slot.buffer) < side * side * 3 + SPARE:
            slot = self._reduced[view][self.count] = Slot(side * side)
        height, width = image.shape[:2]
        method = cv2.INTER_AREA if height >= side and width >= side else cv2.INTER_LINEAR
        cv2.resize(image, (side, side), dst=slot.square(side), interpolation=method)
        return slot

    def images(self, view: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number and pixels of each image of the group: the source of the warp of a view."""
        for index in range(self.count):
            number, address, _ = self.items[view][3 * index : 3 * index + 3]
            slots = (self._slots[index], self._large[index], self._reduced[view][index])
            yield number, next(slot.image for slot in slots if slot is not None and slot.address == address)

    def clear(self) -> None:
        """Start a new group."""
        self.count = 0
