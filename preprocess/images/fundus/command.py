"""``python -m preprocess fundus``: fundus images to image shards.

The published quality control has two steps. The first step excludes images without a circular field of view. The second
step excludes the darkest and the brightest 0.5 % of each eye. The bounding box of the circle with a margin of 5 pixels
is resized to 224 x 224; pixels beyond the image are black.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path, PurePosixPath

from preprocess.images.command import (
    ImageCommand,
    add_job_arguments,
    add_reading_arguments,
    find_sources,
    read_options,
    run_image_command,
)
from preprocess.images.fundus.circle import DETECTORS, blacken_outside, content_fault, crop, light_surround
from preprocess.images.image_file import ReadOptions, read_image
from preprocess.images.outcome import Excluded, Outcome, ProcessedImage
from preprocess.images.sources import IMAGE_SUFFIXES, SourceFile
from preprocess.images.square import to_square
from preprocess.splits import fraction

# Pixels of the source image added around the circle.
MARGIN = 5
NO_DETECTOR = "none"
# Arguments that determine the output bytes.
CHOICES = ("detector", "brightness_percent", "bits", "max_image_mb")
SCHEMA = {
    "jpg": "fundus image cropped to its field of view, RGB, image_size x image_size",
    "json": "participant, eye (left, right; absent if unknown), circle (x, y, radius in pixels of the source image; "
    "absent with --detector none)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of ``fundus``."""
    add_job_arguments(parser, "folder with fundus images (jpg, png, tif, ppm, bmp, webp), searched recursively")
    add_reading_arguments(parser)
    parser.add_argument(
        "--detector",
        choices=[*sorted(DETECTORS), NO_DETECTOR],
        default="mrmfast",
        help="detector of the field of view: outline fit (mrmfast), the published Hough transform (hough), or none: "
        "the images are already cropped, and are padded to squares with black (default: %(default)s)",
    )
    parser.add_argument(
        "--brightness-percent",
        type=fraction(50),
        default=0.5,
        metavar="P",
        help="percentage of the darkest and of the brightest images of each eye to exclude (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Preprocess a folder of fundus images; return 0, or 3 if files could not be read.

    Raises
    ------
    UserError
        SRC is missing or empty, no file is usable, or DATASET was created with other arguments.
    """
    sources, counts = find_sources(arguments, "fundus", IMAGE_SUFFIXES, _is_mask)
    command = ImageCommand(
        name="fundus",
        process=partial(crop_fundus, size=arguments.size, detector=arguments.detector, options=read_options(arguments)),
        choices={name: getattr(arguments, name) for name in CHOICES},
        counts=counts,
        schema=SCHEMA,
        brightness_percent=arguments.brightness_percent,
    )
    return run_image_command(command, arguments, sources)


def _is_mask(path: PurePosixPath) -> bool:
    """Whether a path is a vessel, lesion or field-of-view mask of a public data set."""
    folders = {part.lower() for part in path.parts[:-1]}
    return "masks" in folders or any(word in path.stem.lower() for word in ("vessel", "mask"))


def crop_fundus(path: Path, source: SourceFile, *, size: int, detector: str, options: ReadOptions) -> Outcome:
    """Crop one fundus image to its field of view; without a detector, pad it to a square.

    Raises
    ------
    Unreadable, Excluded
        The image is incomplete; it has no circle, or no visible content.
    """
    # The published detector works on the full image; the default detector needs only a few hundred pixels.
    image, reduction, remarks = read_image(path, 0 if detector == "hough" else 2 * size, options)
    if detector == NO_DETECTOR:
        padded = to_square(image, "none", size)
        fault = content_fault(padded)
        if fault:
            raise Excluded(fault)
        return Outcome([ProcessedImage(padded, {})], remarks=remarks)
    circle = DETECTORS[detector](image)
    if circle is None:
        raise Excluded("no circle")
    surround = light_surround(image)
    cropped = crop(image, circle, MARGIN / reduction, size)
    if surround is not None:
        cropped = blacken_outside(cropped, circle.radius / (circle.radius + MARGIN / reduction))
        remarks = (*remarks, "light surround made black")
    fault = content_fault(cropped)
    if fault:
        raise Excluded(fault)
    outline = circle.scaled(reduction)
    metadata = {"circle": [round(value, 1) for value in (outline.x, outline.y, outline.radius)]}
    return Outcome([ProcessedImage(cropped, metadata)], remarks=remarks)
