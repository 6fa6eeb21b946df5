"""What a decoding thread keeps between pictures: memory for a group of decoded pictures, and their addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg

from mrmfast.data.images.backend import LARGEST

SPARE = 32  # bytes after a decoded picture that the warp may read
ALIGNMENT = 64  # bytes: rows of libjpeg-turbo begin with whole vectors, in every slot and every run alike
FUSED = 1.3  # largest reduction that a bilinear warp does without visible aliasing; beyond, pixels are averaged first
REDUCTION = 64  # pixels of a JPEG for each pixel of libjpeg's smallest scale


class Slot:
    """Memory of one decoded picture, its address, and the array that holds it at present."""

    def __init__(self, pixels: int) -> None:
        self._whole = np.empty(pixels * 3 + SPARE + ALIGNMENT, dtype=np.uint8)
        start = -self._whole.ctypes.data % ALIGNMENT
        self.buffer = self._whole[start : start + pixels * 3 + SPARE]
        self.address = self.buffer.ctypes.data
        self.picture = self.buffer[:0]

    def holds(self, picture: np.ndarray) -> bool:
        """Tell whether a picture lies here; NumPy names the array that owns the memory as base, not the view of it."""
        return picture.base is self._whole


class DecodeMemory:
    """Decode a group of pictures, one after another, into memory that is used again.

    Parameters
    ----------
    count : int
        Pictures of a group.
    side : int
        Side of the largest square picture that is decoded without parsing its header beforehand, pixels.
    size : int
        Side of the output: pictures are decoded at the smallest of libjpeg's scales that is not below it.

    Attributes
    ----------
    count : int
        Pictures decoded since :meth:`clear`.
    items : ctypes array of int64
        For each of them its number, the address of its pixels and its side: what ``warp_group`` takes.
    line : int
        Address of the row that the warp works in.
    """

    def __init__(self, count: int, side: int, size: int) -> None:
        self._size = size
        # A picture that fits has at most LARGEST pixels before it is scaled, so its header needs no look of its own.
        self._slots = [Slot(min(side * side, LARGEST // REDUCTION)) for _ in range(count)]
        self._reduced: list[Slot | None] = [None] * count
        self._line = np.empty(size * 3 + SPARE, dtype=np.uint8)
        self.line = self._line.ctypes.data
        self.items = (ctypes.c_int64 * (3 * count))()
        self.count = 0

    def decode(self, jpeg: np.ndarray, number: int) -> bool:
        """Decode a picture to RGB and add it to the group; return whether it can be decoded.

        Parameters
        ----------
        jpeg : ndarray of uint8
        number : int
            Of the picture in its batch.
        """
        slot = self._slots[self.count]
        try:
            picture = self._decode(jpeg, slot.buffer)
        except ValueError:
            large = self._decode_large(jpeg)
            if large is None:
                return False
            picture = large
        height, width = picture.shape[:2]
        if height != width or height > FUSED * self._size:
            slot = self._reduce(picture)
            height = self._size
        elif not slot.holds(picture):  # larger than a slot, or converted from CMYK
            slot = Slot(height * height)
            slot.picture = slot.buffer[:-SPARE].reshape(picture.shape)
            slot.picture[:] = picture
            self._reduced[self.count] = slot
        else:
            slot.picture = picture
        at = 3 * self.count
        self.items[at], self.items[at + 1], self.items[at + 2] = number, slot.address, height
        self.count += 1
        return True

    def _decode(self, jpeg: np.ndarray, buffer: np.ndarray) -> np.ndarray:
        # strict: what libjpeg only warns of (a truncated or damaged stream, filled up with grey) is an error here.
        picture: np.ndarray = simplejpeg.decode_jpeg(
            jpeg, "RGB", min_height=self._size, min_width=self._size, buffer=buffer, strict=True
        )
        return picture

    def _decode_large(self, jpeg: np.ndarray) -> np.ndarray | None:
        """Decode a picture that is larger than a slot; None if it is too large, or no picture at all."""
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
            if height * width > LARGEST:
                return None
            return self._decode(jpeg, np.empty(height * width * 3, dtype=np.uint8))
        except ValueError:
            return None

    def _reduce(self, picture: np.ndarray) -> Slot:
        """Average a picture that is much larger than the output, or not square, down to it."""
        size, slot = self._size, self._reduced[self.count]
        if slot is None or len(slot.buffer) != size * size * 3 + SPARE:
            slot = self._reduced[self.count] = Slot(size * size)
        height, width = picture.shape[:2]
        way = cv2.INTER_AREA if height >= size and width >= size else cv2.INTER_LINEAR
        slot.picture = slot.buffer[:-SPARE].reshape(size, size, 3)
        cv2.resize(picture, (size, size), dst=slot.picture, interpolation=way)
        return slot

    def pictures(self) -> Iterator[tuple[int, np.ndarray]]:
        """Return number and pixels of the pictures of the group."""
        for place in range(self.count):
            number, address, _ = self.items[3 * place : 3 * place + 3]
            slots = (self._slots[place], self._reduced[place])
            yield number, next(slot.picture for slot in slots if slot is not None and slot.address == address)

    def clear(self) -> None:
        """Begin a new group."""
        self.count = 0
