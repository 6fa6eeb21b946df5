"""What a decoding thread keeps between images: memory for a group of decoded images, and their addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import simplejpeg

from mrmfast.data.images.backend import FUSED, LARGEST
from mrmfast.data.images.warp import SPARE

# Bytes. libjpeg-turbo writes rows that begin with a whole vector (32 bytes) past the caches. The warp then reads the
# image from memory, which costs it up to twice the time. So an image begins half a vector after a cache line.
ALIGNMENT, OFFSET = 64, 16
REDUCTION = 64  # pixels of a JPEG for each pixel of libjpeg's smallest scale


class Slot:
    """Memory of one decoded image, its address, and the array that holds it at present."""

    def __init__(self, pixels: int) -> None:
        self._whole = np.empty(pixels * 3 + SPARE + ALIGNMENT + OFFSET, dtype=np.uint8)
        start = -self._whole.ctypes.data % ALIGNMENT + OFFSET
        self.buffer = self._whole[start : start + pixels * 3 + SPARE]
        self.address = self.buffer.ctypes.data
        self.image = self.buffer[:0]

    def holds(self, image: np.ndarray) -> bool:
        """Tell whether an image lies here; NumPy names the array that owns the memory as base, not the view of it."""
        return image.base is self._whole

    def square(self, side: int) -> np.ndarray:
        """Return the beginning of the memory as an RGB image, which the slot then holds."""
        self.image = self.buffer[: side * side * 3].reshape(side, side, 3)
        return self.image


class DecodeMemory:
    """Decode a group of images, one after another, into memory that is used again.

    An image is decoded once, at the smallest of libjpeg's scales (1/8 to 8/8) that serves all of its views. A view
    reads the decoded image itself, or, where that is much larger than the view needs, a copy that is averaged down.

    Parameters
    ----------
    count : int
        Images of a group.
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
    A JPEG of 512 pixels with two views of 224 pixels: the whole image needs 224, a crop of half the side needs 448.
    libjpeg decodes to 448 (7/8). The second view is warped from that; for the first, 448 is more than 1.3 times 224, so
    a copy is averaged down to 224.
    """

    def __init__(self, count: int, side: int, sizes: Sequence[int]) -> None:
        # An image that fits has at most LARGEST pixels before it is scaled, so its header needs no look of its own.
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
            Of the image in its batch.
        needed : sequence of int
            Per view, the side that the whole image must have so that the view is not enlarged, pixels.
        """
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
        # strict: what libjpeg only warns of (a truncated or damaged stream, filled up with grey) is an error here.
        image: np.ndarray = simplejpeg.decode_jpeg(
            jpeg, "RGB", min_height=least, min_width=least, buffer=buffer, strict=True
        )
        return image

    def _decode_large(self, jpeg: np.ndarray, least: int) -> np.ndarray | None:
        """Decode an image that is larger than a slot; None if it is too large, or no image at all."""
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
        """Average an image that is much larger than a view needs, or not square, down to the side needed."""
        slot = self._reduced[view][self.count]
        if slot is None or len(slot.buffer) < side * side * 3 + SPARE:
            slot = self._reduced[view][self.count] = Slot(side * side)
        height, width = image.shape[:2]
        way = cv2.INTER_AREA if height >= side and width >= side else cv2.INTER_LINEAR
        cv2.resize(image, (side, side), dst=slot.square(side), interpolation=way)
        return slot

    def images(self, view: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield number and pixels of each image of the group, as a view is warped from them."""
        for place in range(self.count):
            number, address, _ = self.items[view][3 * place : 3 * place + 3]
            slots = (self._slots[place], self._large[place], self._reduced[view][place])
            yield number, next(slot.image for slot in slots if slot is not None and slot.address == address)

    def clear(self) -> None:
        """Begin a new group."""
        self.count = 0
