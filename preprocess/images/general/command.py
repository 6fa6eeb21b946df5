"""``python -m preprocess images``: any 2-D images (X-ray, OCT, dermoscopy, ...) to image shards.

There is no quality control beyond complete files. Images are padded to squares, or their centred square is cut out;
grey images become RGB images of three equal channels.
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
from preprocess.images.image_file import ReadOptions, read_image
from preprocess.images.outcome import Outcome, ProcessedImage
from preprocess.images.sources import IMAGE_SUFFIXES, SourceFile
from preprocess.images.square import CROPS, to_square

SCHEMA = {"jpg": "image, RGB, image_size x image_size", "json": "participant, eye if known"}
# Arguments that determine the output bytes.
CHOICES = ("crop", "bits", "max_image_mb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of ``images``."""
    add_job_arguments(parser, "folder with images (jpg, png, tif, ppm, bmp, webp), searched recursively")
    add_reading_arguments(parser)
    parser.add_argument(
        "--crop",
        choices=CROPS,
        default="none",
        help="none: nothing is cut, the shorter side is padded with black; square: the largest centred square is cut "
        "out (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Preprocess a folder of images; return 0, or 3 if files could not be read.

    Raises
    ------
    UserError
        SRC is missing or empty, no file is usable, or DATASET was created with other arguments.
    """
    sources, counts = find_sources(arguments, "images", IMAGE_SUFFIXES, _is_mask)
    command = ImageCommand(
        name="images",
        process=partial(square_image, size=arguments.size, crop=arguments.crop, options=read_options(arguments)),
        choices={name: getattr(arguments, name) for name in CHOICES},
        counts=counts,
        schema=SCHEMA,
    )
    return run_image_command(command, arguments, sources)


def _is_mask(path: PurePosixPath) -> bool:
    return "masks" in {part.lower() for part in path.parts[:-1]}


def square_image(path: Path, source: SourceFile, *, size: int, crop: str, options: ReadOptions) -> Outcome:
    """Make one image square.

    Raises
    ------
    Unreadable
        The image is incomplete, damaged or too large.
    """
    image, _, remarks = read_image(path, size, options)
    return Outcome([ProcessedImage(to_square(image, crop, size), {})], remarks=remarks)
