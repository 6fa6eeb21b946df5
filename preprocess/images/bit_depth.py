"""More than 8 bits per channel to 8 bits: one rule for PNG, TIFF and PPM.

The scale of a file is, in this order: ``--bits``; the maximum that the file declares (TIFF's BitsPerSample and
MaxSampleValue, PPM's maximum) if it is below 65,535; else the smallest of 8, 10, 12, 14 and 16 bits that holds the
largest value of the file.
Values are divided by the maximum of the scale and rounded: no value is cut. The report counts files by their scale.
"""

from __future__ import annotations

import re

import cv2
import numpy as np
from PIL import Image

from preprocess.images.outcome import Unreadable

BIT_DEPTHS = (8, 10, 12, 14, 16)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MAX_SAMPLE_VALUE, _SAMPLE_FORMAT = 258, 262, 281, 339
_PNG_DEPTH_AT = 24  # byte of the file


def bits_per_channel(header: Image.Image, data: bytes) -> int:
    """Return the bits per channel of a file, of which only the header is read.

    Parameters
    ----------
    header : Image
        As Pillow opened it; Pillow cuts 16-bit RGB to 8 bits, so its mode does not tell.
    data : bytes
        The file.

    Raises
    ------
    Unreadable
        The values are not unsigned integers of at most 16 bits.
    """
    bits = 8
    if header.format == "PNG":
        bits = max(8, data[_PNG_DEPTH_AT])
    elif header.format == "PPM":
        bits = max(8, _ppm_maximum(data).bit_length())
    elif header.format == "TIFF":
        tags = header.tag_v2  # type: ignore[attr-defined]
        bits = max(8, *_numbers(tags.get(_BITS_PER_SAMPLE)))
        if bits > 16 or (bits > 8 and set(_numbers(tags.get(_SAMPLE_FORMAT))) - {0, 1}):
            raise Unreadable("not unsigned integers of at most 16 bits; convert it to 8 or 16 bits per channel")
    if header.mode[0] == "F" or (header.mode[0] == "I" and not 8 < bits <= 16):
        raise Unreadable("not unsigned integers of at most 16 bits; convert it to 8 or 16 bits per channel")
    return bits


def _ppm_maximum(data: bytes) -> int:
    """Return the largest value that the header of a PPM or PGM declares; 1 for a PBM."""
    magic, *numbers = re.sub(rb"#[^\n]*", b" ", data[:1024]).split()[:4]
    return int(numbers[2]) if magic in (b"P2", b"P3", b"P5", b"P6") else 1


def _numbers(value: object) -> list[int]:
    values = value if isinstance(value, tuple) else (value,)
    return [int(number) for number in values if isinstance(number, int | float)] or [0]


def to_8_bits(image: Image.Image, data: bytes, declared_bits: int, bits: int | None) -> tuple[np.ndarray, str]:
    """Scale an image of 9 to 16 bits per channel to 8.

    Parameters
    ----------
    image : Image
        Loaded by Pillow, which refuses files that end early.
    data : bytes
        The file.
    declared_bits : int
        From :func:`bits_per_channel`.
    bits : int, optional
        The scale; None: by the rule of this module.

    Returns
    -------
    ndarray of uint8, shape (height, width) or (height, width, channels), grey, RGB or RGBA
    str
        What was done, for the report.

    Raises
    ------
    Unreadable
        OpenCV cannot read the file, or a value exceeds the scale.
    """
    pixels = _deep_pixels(image, data)
    largest = int(pixels.max(initial=0))
    maximum = _maximum(image, data, declared_bits, bits, largest)
    if largest > maximum:
        raise Unreadable(f"a value of {largest} exceeds the scale of 0 to {maximum}; state the bits with --bits")
    scaled = cv2.convertScaleAbs(pixels, alpha=255 / maximum)
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:  # type: ignore[attr-defined]
        scaled = 255 - scaled  # white is zero
    return scaled, f"more than 8 bits per channel, scaled from 0..{maximum}"


def _deep_pixels(image: Image.Image, data: bytes) -> np.ndarray:
    if image.mode[0] == "I" and image.format != "PPM":  # one channel: Pillow keeps all bits
        return np.asarray(image).astype(np.uint16)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[1::-1] != image.size:
        raise Unreadable("16 bits per channel in a form that OpenCV does not read; convert it to PNG")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return pixels


def _maximum(image: Image.Image, data: bytes, declared_bits: int, bits: int | None, largest: int) -> int:
    """Return the largest value of the scale."""
    if bits:
        return 2**bits - 1
    if image.format == "PPM" and _ppm_maximum(data) < 2**16 - 1:
        return _ppm_maximum(data)
    if image.format == "TIFF" and declared_bits < 16:
        return 2**declared_bits - 1
    if image.format == "TIFF":
        stated = max(_numbers(image.tag_v2.get(_MAX_SAMPLE_VALUE)))  # type: ignore[attr-defined]
        if max(largest, 255) <= stated < 2**16:
            return stated
    return next(2**depth - 1 for depth in BIT_DEPTHS if largest < 2**depth)
