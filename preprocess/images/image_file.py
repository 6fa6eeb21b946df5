"""Reads complete image files, and encodes finished images."""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mrmfast.arithmetic import ceil_div
from mrmfast.formats.jpeg import decode_jpeg, jpeg_ends
from preprocess.images.bit_depth import bits_per_channel, to_8_bits
from preprocess.images.outcome import Unreadable

# Recognised by content; a JPEG with several images (MPO) is a JPEG. Pillow opens no other format: EPS would start
# Ghostscript.
FORMATS = ("JPEG", "PNG", "TIFF", "PPM", "BMP", "WEBP")
JPEG_QUALITY = 95
REDUCTIONS = (1, 2, 4, 8)
DECODED_MEGABYTES = 256
# Pillow's limit counts pixels; ReadOptions.megabytes counts bytes, and takes its place.
Image.MAX_IMAGE_PIXELS = None
# How files begin that are often named like images.
_SIGNATURES = {
    b"GIF8": "GIF", b"%PDF": "PDF", b"%!PS": "EPS", b"\xc5\xd0\xd3\xc6": "EPS", b"<": "HTML or XML", b"PK\3\4": "ZIP",
    b"8BPS": "PSD", b"\0\0\0\x0cjP  ": "JPEG 2000", b"\xff\x4f\xff\x51": "JPEG 2000",
}  # fmt: skip


@dataclass(frozen=True)
class ReadOptions:
    """How image files are decoded.

    Attributes
    ----------
    megabytes : int
        Largest decoded image, 10^6 bytes by its header; a worker needs up to about four times this.
    bits : int or None
        Scale of images with more than 8 bits per channel; None: :mod:`preprocess.images.bit_depth`.
    background : int
        Grey level under transparent pixels.
    """

    megabytes: int = DECODED_MEGABYTES
    bits: int | None = None
    background: int = 0


class DecodedImage(NamedTuple):
    """A decoded image.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (height, width, 3), BGR
        Rotated by the EXIF orientation.
    reduction : int
        The reduction while decoding: 1, 2, 4 or 8.
    conversions : tuple of str
        What was lost or changed on the way to 8-bit RGB, for the report.
    """

    pixels: np.ndarray
    reduction: int
    conversions: tuple[str, ...]


def read_image(path: Path, smallest_side: int = 0, options: ReadOptions | None = None) -> DecodedImage:
    """Read a complete image file; a JPEG may be downscaled while decoding.

    Parameters
    ----------
    path : Path
    smallest_side : int
        A JPEG may be decoded at 1/2, 1/4 or 1/8 as long as its shorter side keeps this many pixels; 0: never.
    options : ReadOptions, optional

    Returns
    -------
    DecodedImage

    Raises
    ------
    Unreadable
        The file is missing, has no read permission, is no regular file, is not an image of FORMATS, is truncated or
        damaged, decodes to more than the allowed memory, or has not unsigned integers of at most 16 bits.
    """
    options = options or ReadOptions()
    data = _read_bytes(path, 2 * options.megabytes * 1_000_000)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of unusual metadata; only the pixels matter
            with Image.open(path, formats=FORMATS) as header:
                if header.format in ("JPEG", "MPO"):
                    return _read_jpeg(header, data, smallest_side, options)
                return _read_other(header, data, options)
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise Unreadable(f"not an image of a format that is read: {_describe(data)}") from error
    except Exception as error:  # decoders raise many exception types on a damaged file
        raise Unreadable(f"not a whole image ({type(error).__name__})") from error


def _read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a regular file: a FIFO would wait for ever, a device would never end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("not a regular file")
        if status.st_size > limit:
            raise Unreadable(f"a file of {status.st_size // 1_000_000} MB; --max-image-mb allows {limit // 2_000_000}")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(os.strerror(error.errno or 0)) from error


def _describe(data: bytes) -> str:
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or a video"
    if data[128:132] == b"DICM":
        return "DICOM"
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((name for signature, name in _SIGNATURES.items() if start.startswith(signature)), "unknown")


def _limit_memory(size: int, options: ReadOptions) -> None:
    if size > options.megabytes * 1_000_000:
        raise Unreadable(
            f"too large: {max(1, size // 1_000_000)} MB decoded, --max-image-mb allows {options.megabytes}"
        )


def _read_jpeg(header: Image.Image, data: bytes, smallest_side: int, options: ReadOptions) -> DecodedImage:
    if not jpeg_ends(data):
        raise Unreadable("truncated: the JPEG has no end marker")
    width, height = header.size
    reduction = max((r for r in REDUCTIONS if smallest_side and min(header.size) >= r * smallest_side), default=1)
    channels = len(header.getbands())
    decoded = width * height * 3 // reduction**2
    if header.info.get("progressive"):  # libjpeg keeps all coefficients, two bytes each
        decoded += width * height * 2 * channels
    # What is reduced takes time all the same: a header must not promise more than 16 times the limit.
    _limit_memory(max(decoded, width * height * 3 // 16), options)
    orientation = _orientation(header)
    try:
        pixels = decode_jpeg(data, "BGR", least=(ceil_div(height, reduction), ceil_div(width, reduction)))
    except ValueError as error:
        raise Unreadable("damaged: libjpeg cannot decode all of it") from error
    return DecodedImage(_upright(pixels, orientation), reduction, ("CMYK to RGB",) if channels == 4 else ())


def _orientation(header: Image.Image) -> int:
    try:
        return int(header.getexif().get(0x0112, 1))
    except Exception:  # Pillow raises many exception types on damaged EXIF data, which says nothing of the pixels
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _read_other(header: Image.Image, data: bytes, options: ReadOptions) -> DecodedImage:
    """Read a PNG, TIFF, PPM, BMP or WebP."""
    width, height = header.size
    bits = bits_per_channel(header, data)
    # Pillow keeps three channels in four bytes.
    channels = {1: 1, 2: 2}.get(len(header.getbands()), 4)
    _limit_memory(width * height * max(3, channels * ceil_div(bits, 8)), options)
    conversions = []
    if getattr(header, "n_frames", 1) > 1:
        header.seek(0)
        conversions.append("first of several pages or frames")
    orientation = _orientation(header)
    header.load()  # Pillow, unlike OpenCV, refuses PNG and TIFF files that end early
    if bits == 8:
        image = ImageOps.exif_transpose(header)
    else:
        pixels, conversion = to_8_bits(header, data, bits, options.bits)
        conversions.append(conversion)
        # Both readers apply a TIFF's orientation themselves.
        image = Image.fromarray(_upright(pixels, 1 if header.format == "TIFF" else orientation))
    return DecodedImage(_flatten(image, options.background, conversions), 1, tuple(conversions))


def _flatten(image: Image.Image, background: int, conversions: list[str]) -> np.ndarray:
    """Convert an image of 8 bits per channel to BGR; append what is lost to `conversions`."""
    if image.mode == "CMYK":
        conversions.append("CMYK to RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        lowest, _ = image.getchannel("A").getextrema()
        if lowest != 255:
            conversions.append(f"transparent pixels on {'white' if background else 'black'}")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*(background,) * 3, 255)), image)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


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
