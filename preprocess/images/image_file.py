"""Reads complete image files, and encodes finished images."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from preprocess.images.outcome import Unreadable

JPEG_QUALITY = 95
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def read_image(path: Path, smallest_side: int = 0) -> tuple[np.ndarray, int]:
    """Read a complete image file; a JPEG may be downscaled while decoding.

    Parameters
    ----------
    path : Path
    smallest_side : int
        A JPEG may be decoded at 1/2, 1/4 or 1/8 as long as its shorter side keeps this many pixels; 0: never.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3), BGR
        Rotated by the EXIF orientation.
    int
        The reduction used: 1, 2, 4 or 8.

    Raises
    ------
    Unreadable
        The file is missing, has no read permission, is not an image, is truncated, or has not 8 bits per channel.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(os.strerror(error.errno or 0)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of unusual metadata; only the pixels matter
            with Image.open(io.BytesIO(data)) as header:
                if header.format in ("JPEG", "MPO"):
                    return _read_jpeg(data, min(header.size), smallest_side)
                # Pillow, unlike OpenCV, refuses PNG and TIFF files that end early.
                header.load()
                if header.mode[0] in "IF":
                    raise Unreadable("more than 8 bits per channel; convert it to 8-bit RGB")
                upright = ImageOps.exif_transpose(header).convert("RGB")
                return np.ascontiguousarray(np.asarray(upright)[:, :, ::-1]), 1
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # decoders raise many exception types on a damaged file
        raise Unreadable(f"not a whole image ({type(error).__name__})") from error


def _read_jpeg(data: bytes, shorter_side: int, smallest_side: int) -> tuple[np.ndarray, int]:
    if not _jpeg_ends(data):
        raise Unreadable("truncated: the JPEG has no end marker")
    allowed = [r for r in _REDUCED if smallest_side and shorter_side >= r * smallest_side]
    reduction = max(allowed, default=1)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduction])
    if image is None:
        raise Unreadable("not a whole image (JPEG decoder)")
    return image, reduction


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end marker follows the compressed data of a JPEG.

    OpenCV fills a truncated JPEG with grey and only warns. The segments of the header are skipped, because an embedded
    thumbnail has its own end marker.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xDA:  # start of scan: entropy-coded data escapes 0xFF, so the marker cannot occur by chance
            return data.find(b"\xff\xd9", position) >= 0
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 1 if marker == 0xFF else 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Encode BGR uint8 pixels as a JPEG of quality 95."""
    done, buffer = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done, "OpenCV encodes any 8-bit image"
    return buffer.tobytes()


def pixel_sums(jpeg: bytes) -> tuple[list[int], list[int]]:
    """Return the sums and sums of squares of an encoded image's red, green and blue values (0..255, exact)."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "we encoded it"
    pixels = image.astype(np.int64).reshape(-1, 3)[:, ::-1]
    return pixels.sum(axis=0).tolist(), (pixels**2).sum(axis=0).tolist()
