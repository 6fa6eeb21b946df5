"""The verdict on a JPEG file: one rule for the preprocessors, ``index`` and every image backend.

The rule of the backends is structural: the file begins with a start marker, and an end marker follows the compressed
data. Bytes after the end marker (padding, trailers of phones, a second image) and bytes before it change nothing.
Warnings of libjpeg inside the compressed data change nothing either, because neither DALI nor nvJPEG reports them.
:func:`jpeg_fault` decodes the complete file and reports these warnings: preprocessors refuse such files beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import numpy as np
import simplejpeg

# Pixels. Larger images are not decoded for training, since a header can promise more than memory holds.
LARGEST = 100_000_000
# Bytes before the end marker that some programs write as padding. A decoder that lost its way leaves more behind.
PADDING = 64
# What libjpeg goes on after: the warnings of its jerror.h.
_WARNING = re.compile(
    "Corrupt JPEG data|Premature end of JPEG|Inconsistent progression sequence|Invalid SOS parameters for sequential"
    "|Unknown Adobe color transform"
)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_START, _END = b"\xff\xd8", b"\xff\xd9"


def jpeg_ends(jpeg: bytes | np.ndarray) -> bool:
    """Return whether a file begins as a JPEG and an end marker follows its compressed data.

    Decoders fill a truncated JPEG with grey and only warn. A file that ends in an end marker is not parsed.

    Parameters
    ----------
    jpeg : bytes or ndarray of uint8
    """
    if bytes(jpeg[:2]) != _START:
        return False
    return bytes(jpeg[-2:]) == _END or _end_follows_scan(bytes(jpeg))


def _end_follows_scan(data: bytes) -> bool:
    """Skip the segments of the header, because an embedded thumbnail has its own end marker."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:  # start of scan: entropy-coded data escapes 0xFF, so the marker cannot occur by chance
            return data.find(_END, position) >= 0
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 1 if marker == 0xFF else 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def decode_jpeg(
    jpeg: bytes | np.ndarray,
    colours: str = "RGB",
    *,
    least: tuple[int, int] = (0, 0),
    buffer: np.ndarray | None = None,
    tolerant: bool = False,
) -> np.ndarray:
    """Decode a JPEG.

    Parameters
    ----------
    jpeg : bytes or ndarray of uint8
    colours : {"RGB", "BGR"}
    least : tuple of int
        Height and width: the smallest of libjpeg's scales that is not below is used; 0: full size.
    buffer : ndarray of uint8, optional
        Memory for the pixels.
    tolerant : bool
        Accept all warnings of libjpeg, as the backends do; else only padding before the end marker.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    ValueError
        libjpeg refuses the file or warns of damage, or the buffer is too small.
    """
    options = {"min_height": least[0], "min_width": least[1], "buffer": buffer}
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(jpeg, colours, strict=True, **options)
    except ValueError as error:
        # Without `strict`, simplejpeg accepts errors after a warning too, and returns memory that nobody wrote.
        if not (_WARNING.match(str(error)) if tolerant else _is_padding(str(error))):
            raise
        pixels = simplejpeg.decode_jpeg(jpeg, colours, strict=False, **options)
    return pixels


def _is_padding(message: str) -> bool:
    padding = _EXTRANEOUS.search(message)
    return padding is not None and int(padding[1]) <= PADDING


def jpeg_fault(jpeg: bytes) -> str | None:
    """Return why a JPEG is refused; None if it is complete and undamaged.

    The file is decoded at 1/8 of its size: this reads all of the compressed data.

    Parameters
    ----------
    jpeg : bytes

    Returns
    -------
    str or None
        ``"not a JPEG"``, ``"truncated: no end marker"``, ``"too large"`` or ``"damaged"``.
    """
    if jpeg[:2] != _START:
        return "not a JPEG"
    if not jpeg_ends(jpeg):
        return "truncated: no end marker"
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        if height * width > LARGEST:
            return "too large"
        decode_jpeg(jpeg, least=(1, 1))
    except ValueError:
        return "damaged"
    return None


def jpeg_orientation(jpeg: bytes) -> int:
    """Return the EXIF orientation (1 to 8) of a JPEG; 1 where there is none. The image backends ignore it."""
    segment = next((data for marker, data in _segments(jpeg) if marker == 0xE1 and data[:6] == b"Exif\0\0"), b"")[6:]
    order: Literal["big", "little"] = "big" if segment[:2] == b"MM" else "little"

    def number(start: int, length: int) -> int:
        return int.from_bytes(segment[start : start + length], order)

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of the segments before the compressed data."""
    position = 2
    while position + 4 <= len(jpeg) and jpeg[position] == 0xFF and jpeg[position + 1] != 0xDA:
        length = int.from_bytes(jpeg[position + 2 : position + 4], "big")
        yield jpeg[position + 1], jpeg[position + 4 : position + 2 + length]
        position += 2 + length
