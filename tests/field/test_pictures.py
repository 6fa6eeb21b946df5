"""Photographs and other pictures: bit depth, colour, formats by content, memory, surrounds, pictures without a circle.

Independent tools: Pillow and tifffile write the files; NumPy and Pillow give the right values.
"""

import contextlib
import io
import json
import os
import random
import struct
import subprocess
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from mrmfast.formats.sample_table import read_sample_table
from preprocess.__main__ import main
from preprocess.images.fundus.circle import detect_outline, light_surround
from preprocess.images.image_file import ReadOptions, read_image
from preprocess.images.outcome import Unreadable
from preprocess.images.square import to_square
from tests.helpers.common import real_data
from tests.helpers.images import smooth_image

DEEP = cv2.resize(smooth_image(1, 6).astype(np.uint16) * 257, (60, 40), interpolation=cv2.INTER_LINEAR)  # RGB
GREY = DEEP[..., 0].copy()
SHALLOW = (DEEP >> 8).astype(np.uint8)
PICTURE = Image.fromarray(SHALLOW)


def png16(pixels, path):
    cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


def ppm16(pixels, path, maximum=65_535):
    magic = b"P6" if pixels.ndim == 3 else b"P5"
    path.write_bytes(
        b"%s\n# made by a test\n%d %d\n%d\n" % (magic, *pixels.shape[1::-1], maximum) + pixels.astype(">u2").tobytes()
    )


def expected(pixels, maximum):
    values = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return values.astype(float) * 255 / maximum


# Write a file; the scale that must be found, the values of the file.
DEEP_FILES = {
    "16-bit RGB PNG": ("a.png", lambda path: png16(DEEP, path), 65_535, DEEP),
    "16-bit grey PNG": ("a.png", lambda path: png16(GREY, path), 65_535, GREY),
    "12 in 16 bits, RGB PNG": ("a.png", lambda path: png16(DEEP >> 4, path), 4095, DEEP >> 4),
    "12 in 16 bits, grey PNG": ("a.png", lambda path: png16(GREY >> 4, path), 4095, GREY >> 4),
    "10 in 16 bits, grey TIFF": ("a.tif", lambda path: tifffile.imwrite(path, GREY >> 6), 1023, GREY >> 6),
    "14 in 16 bits, RGB TIFF": ("a.tif", lambda p: tifffile.imwrite(p, DEEP >> 2, photometric="rgb"), 16383, DEEP >> 2),
    "16-bit RGB TIFF, big-endian": (
        "a.tif", lambda path: tifffile.imwrite(path, DEEP, photometric="rgb", byteorder=">"), 65_535, DEEP,
    ),
    "16-bit RGB TIFF, LZW by Pillow's library": (
        "a.tif", lambda path: cv2.imwrite(str(path), DEEP[..., ::-1]), 65_535, DEEP,
    ),
    "MaxSampleValue of 20,000": (
        "a.tif", lambda path: Image.fromarray(GREY // 4).save(path, tiffinfo={281: 20_000}), 20_000, GREY // 4,
    ),
    "16-bit PPM": ("a.ppm", lambda path: ppm16(DEEP, path), 65_535, DEEP),
    "PPM of 4,095": ("a.ppm", lambda path: ppm16(DEEP >> 4, path, 4095), 4095, DEEP >> 4),
    "PGM of 1,000": ("a.pgm", lambda path: ppm16(GREY // 66, path, 1000), 1000, GREY // 66),
    "12 in a PGM of 65,535": ("a.pgm", lambda path: ppm16(GREY >> 4, path), 4095, GREY >> 4),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP_FILES)
def test_deep_pixels_are_scaled_by_the_stated_rule(kind, tmp_path):
    name, write, maximum, values = DEEP_FILES[kind]
    write(tmp_path / name)
    picture = read_image(tmp_path / name)
    assert np.abs(picture.pixels[..., ::-1] - expected(values, maximum)).max() <= 0.51
    assert picture.conversions == (f"more than 8 bits per channel, scaled from 0..{maximum}",)


def test_white_is_zero_is_inverted(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    pixels = read_image(tmp_path / "a.tif").pixels
    assert np.abs(pixels[..., ::-1] - (255 - expected(GREY, 65_535))).max() <= 0.51


def test_bits_are_stated_by_hand_and_nothing_is_cut(tmp_path):
    png16(GREY >> 5, tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png", options=ReadOptions(bits=16)).pixels
    assert np.abs(pixels - expected(GREY >> 5, 65_535)).max() <= 0.51
    with pytest.raises(Unreadable, match="exceeds the scale"):
        read_image(tmp_path / "a.png", options=ReadOptions(bits=10))


@pytest.mark.parametrize("values", [GREY.astype(np.float32), GREY.astype(np.int32), GREY.astype(np.int16)])
def test_other_numbers_are_refused_with_the_reason(values, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", values)
    with pytest.raises(Unreadable, match="unsigned integers"):
        read_image(tmp_path / "a.tif")


def alpha(mode, level):
    image = PICTURE.convert(mode)
    image.putalpha(level)
    return image


COLOURS = {
    "palette": ("a.png", PICTURE.quantize(256), ()),
    "1 bit": ("a.png", PICTURE.convert("1"), ()),
    "grey": ("a.png", PICTURE.convert("L"), ()),
    "grey, opaque": ("a.png", alpha("L", 255), ()),
    "BMP": ("a.bmp", PICTURE, ()),
    "WebP": ("a.webp", PICTURE, ()),
    "PPM": ("a.ppm", PICTURE, ()),
    "CMYK TIFF": ("a.tif", PICTURE.convert("CMYK"), ("CMYK to RGB",)),
}


@pytest.mark.parametrize("kind", COLOURS)
def test_colours_are_those_of_pillow(kind, tmp_path):
    name, image, conversions = COLOURS[kind]
    image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    picture = read_image(tmp_path / name)
    assert np.array_equal(picture.pixels[..., ::-1], np.asarray(Image.open(tmp_path / name).convert("RGB")))
    assert picture.conversions == conversions


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("background", [0, 255])
def test_transparent_pixels_lie_on_a_stated_colour(mode, background, tmp_path):
    if mode == "P":
        image = PICTURE.quantize(16)
        image.save(tmp_path / "a.png", transparency=bytes([0] * 8 + [255] * 8))
    else:
        image = alpha(mode, 0)
        image.save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png", options=ReadOptions(background=background))
    clear = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA"))[..., 3] == 0
    assert clear.any() and (picture.pixels[clear] == background).all()
    assert picture.conversions == (f"transparent pixels on {'white' if background else 'black'}",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_exif_orientation_is_that_of_pillow(name, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    PICTURE.save(tmp_path / name, exif=exif, **({"quality": 95} if name == "a.jpg" else {}))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)))
    pixels = read_image(tmp_path / name).pixels[..., ::-1]
    assert pixels.shape == upright.shape and np.abs(pixels.astype(int) - upright).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_pixels_are_turned_too(orientation, tmp_path):
    png16(DEEP, tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = (tmp_path / "plain.png").read_bytes()
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))  # Pillow cuts to the high byte
    pixels = read_image(tmp_path / "a.png").pixels[..., ::-1]
    assert pixels.shape == upright.shape and np.abs(pixels.astype(int) - upright).max() <= 1


def saved(kind, **options):
    file = io.BytesIO()
    PICTURE.save(file, kind, **options)
    return file.getvalue()


def with_size(jpeg, marker, side):
    at = jpeg.index(marker) + 5
    return jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :]


def png_of(width, height):
    """A PNG of zeros, packed: 1,000 bytes that promise any size."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + 3 * width)) for _ in range(min(height, 50))) + rows.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


# What is named .jpg, and words of the reason.
NO_PICTURES = {
    "GIF": (saved("GIF"), "GIF"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "EPS"),
    "EPS with a preview": (b"\xc5\xd0\xd3\xc6" + bytes(99), "EPS"),
    "PDF": (b"%PDF-1.7\n", "PDF"),
    "HTML": (b"\xef\xbb\xbf\n<!DOCTYPE html>", "HTML"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "HTML or XML"),
    "ZIP": (b"PK\3\4" + bytes(99), "ZIP"),
    "HEIC": (bytes(4) + b"ftypheic" + bytes(99), "HEIC"),
    "DICOM": (bytes(128) + b"DICM" + bytes(99), "DICOM"),
    "Photoshop": (b"8BPS\0\1" + bytes(99), "PSD"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "JPEG 2000"),
    "ICO": (saved("ICO"), "unknown"),
    "empty": (b"", "empty"),
    "text": (b"lost\n", "unknown"),
    "JPEG, 60,000 x 60,000": (with_size(saved("JPEG"), b"\xff\xc0", 60_000), "too large"),
    "progressive JPEG, 30,000 x 30,000": (with_size(saved("JPEG", progressive=True), b"\xff\xc2", 30_000), "too large"),
    "PNG, 13,000 x 13,000": (png_of(13_000, 13_000), "too large"),
    "PNG, 60,000 x 60,000": (png_of(60_000, 60_000), "too large"),
    "truncated PNG": (saved("PNG")[:-40], "not a whole image"),
    "truncated JPEG": (saved("JPEG")[:-40], "no end marker"),
    "JPEG with a hole": (saved("JPEG", quality=95)[:-300] + b"\xff\xd9", "damaged"),
    "truncated TIFF": (saved("TIFF")[:-900], "not "),
    "truncated PPM": (saved("PPM")[:-9], "not a whole image"),
}


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_no_picture_has_a_reason(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program is started"))
    content, words = NO_PICTURES[kind]
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(Unreadable, match=words):
        read_image(tmp_path / "a.jpg", 224)


def test_a_reduced_jpeg_counts_as_what_is_decoded(tmp_path):
    image = Image.fromarray(cv2.resize(SHALLOW, (1000, 1000)))
    image.save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", 224, ReadOptions(megabytes=1)).reduction == 4
    with pytest.raises(Unreadable, match="max-image-mb allows 2"):
        read_image(tmp_path / "a.jpg", 0, ReadOptions(megabytes=2))


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path in (tmp_path / "a.jpg", tmp_path, tmp_path / "absent.jpg"):
        with pytest.raises(Unreadable):
            read_image(path)
    os.symlink("/dev/zero", tmp_path / "b.jpg")
    with pytest.raises(Unreadable, match="not a regular file"):
        read_image(tmp_path / "b.jpg")


@pytest.mark.parametrize("seed", range(20))
def test_a_mutated_picture_is_read_or_refused(seed, tmp_path):
    generator = random.Random(seed)
    content = bytearray(saved(("JPEG", "PNG", "TIFF", "PPM", "BMP", "WEBP")[seed % 6]))
    for _ in range(generator.choice((1, 4, 30))):
        content[generator.randrange(min(200, len(content)))] = generator.randrange(256)
    (tmp_path / "a.jpg").write_bytes(content)
    with contextlib.suppress(Unreadable):
        assert read_image(tmp_path / "a.jpg").pixels.dtype == np.uint8


def fundus(seed, surround=0, size=256):
    """A vignetted disc with a bright spot."""
    y, x = np.mgrid[:size, :size] - size / 2
    radius = np.hypot(x, y)
    pixels = (45, 95, 190) * (1 - 0.4 * (radius / (size * 0.45)) ** 2)[..., None]
    pixels = pixels + 70 * np.exp(-((x - 20) ** 2 + (y + 10) ** 2) / 300)[..., None]
    pixels += np.random.default_rng(seed).normal(0, 4, pixels.shape)
    return np.where((radius < size * 0.45)[..., None], pixels.clip(0, 255), surround).astype(np.uint8)


@pytest.mark.parametrize("surround", [255, 240, 200, 128, (230, 255, 250)])
def test_a_light_surround_is_found_and_made_black(surround, tmp_path):
    (tmp_path / "src").mkdir()
    cv2.imwrite(str(tmp_path / "src" / "1000001_left_0.png"), fundus(0, surround))
    cv2.imwrite(str(tmp_path / "src" / "1000002_left_0.png"), fundus(1))
    circle = detect_outline(fundus(0, surround))
    assert np.hypot(circle.x - 128, circle.y - 128) < 3 and abs(circle.radius - 115) < 9
    out = tmp_path / "out"
    assert main(["fundus", str(tmp_path / "src"), "--out", str(out), "--size", "64", "--test-fraction", "0"]) == 0
    counts = json.loads((out / "reports" / "fundus.json").read_bytes())["counts"]
    assert counts["written"] == 2 and counts["remarks"] == {"light surround made black": 1}
    table, raw = read_sample_table(str(out)), (out / "images" / "shard-000000.tar").read_bytes()
    images = [
        cv2.imdecode(np.frombuffer(raw[start : start + size], np.uint8), cv2.IMREAD_COLOR)
        for start, size in zip(table.offset, table.size, strict=True)
    ]
    assert all(image[:6, :6].max() < 20 for image in images)
    assert abs(images[0].mean() - images[1].mean()) < 10


def test_light_surrounds_on_real_photographs():
    """The circle found on black is found on white too."""
    for path in sorted(real_data("fundus/chase").glob("*.jpg"))[:4]:
        image = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_2)
        black = detect_outline(image)
        y, x = np.mgrid[: image.shape[0], : image.shape[1]]
        inside = np.hypot(x - black.x, y - black.y) < black.radius
        white = detect_outline(np.where(inside[..., None], image, np.uint8(255)))
        assert light_surround(image) is None
        assert max(abs(black.x - white.x), abs(black.y - white.y), abs(black.radius - white.radius)) < 3


def test_pictures_already_cropped_are_refused_with_the_remedy_and_taken_by_it(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = cv2.resize(rng.integers(60, 200, (5, 7, 3), dtype=np.uint8), (140, 100))
        cv2.imwrite(str(tmp_path / "src" / f"100000{number}_left_0.png"), pixels)
    arguments = ["fundus", str(tmp_path / "src"), "--size", "70", "--test-fraction", "0", "--brightness-percent", "0"]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 2
    assert "--detector none takes images" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "b"), "--detector", "none"]) == 0
    assert len(read_sample_table(str(tmp_path / "b"))) == 3


def test_squares_are_padded_or_cut():
    image = np.full((40, 60, 3), 200, np.uint8)
    padded, cut = to_square(image, "none", 30), to_square(image, "square", 20)
    assert (padded[:4] == 0).all() and (padded[-4:] == 0).all() and (padded[6:24] == 200).all()
    assert (cut == 200).all() and cut.shape == (20, 20, 3)


def test_any_pictures_become_shards(tmp_path, capsys):
    """X-ray (12 in 16 bits), OCT (grey), dermoscopy (JPEG) and a page of HTML."""
    source, out = tmp_path / "src", tmp_path / "out"
    source.mkdir()
    png16(GREY >> 4, source / "1000001_left_0.png")
    Image.fromarray(GREY >> 8).convert("L").save(source / "1000002_left_0.tif")
    PICTURE.save(source / "1000003_left_0.jpg", quality=95)
    (source / "1000004_left_0.jpg").write_text("<html>")
    arguments = ["images", str(source), "--out", str(out), "--size", "60", "--test-fraction", "0"]
    assert main([*arguments, "--crop", "none"]) == 3
    printed = capsys.readouterr()
    assert "1 files: more than 8 bits per channel, scaled from 0..4095" in printed.out
    report = json.loads((out / "reports" / "images.json").read_bytes())
    assert report["unreadable"][0]["reason"] == "not an image of a format that is read: HTML or XML"
    table, raw = read_sample_table(str(out)), (out / "images" / "shard-000000.tar").read_bytes()
    assert table.participant.tolist() == ["1000001", "1000002", "1000003"]
    start, size = int(table.offset[0]), int(table.size[0])
    stored = cv2.imdecode(np.frombuffer(raw[start : start + size], np.uint8), cv2.IMREAD_COLOR).astype(int)
    assert (stored[:8] < 12).all()
    assert np.abs(stored[10:50] - expected(GREY >> 4, 4095)).mean() < 3
    assert main([*arguments, "--crop", "square"]) == 2
    assert "was created with crop = none, not square" in capsys.readouterr().err
