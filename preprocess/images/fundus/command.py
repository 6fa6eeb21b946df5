"""``python -m preprocess fundus``: fundus photographs to image shards.

Quality control as published, in two steps: only photographs in which a circle is found; of those, without the darkest
and the brightest 0.5 % of each eye. The circle's box with a margin of 5 pixels is resized to 224 x 224, black where it
reaches beyond the photograph.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path, PurePosixPath

from preprocess.images.command import add_job_arguments, name_sources, run_image_command, share
from preprocess.images.fundus.circle import DETECTORS, content_fault, crop
from preprocess.images.picture import Outcome, Picture, SetAside, read_picture
from preprocess.images.sources import PICTURE_SUFFIXES, Source, find_files

# UK Biobank's own names ({id}_{field}_{instance}_{array}) and the predecessor's ({id}_{eye}_0.jpg).
PATTERN = r"(?P<participant>\d+)_(?P<eye>21015|21016|left|right|l|r|od|os)(?=[_.])"
# Pixels of the photograph added around the circle.
MARGIN = 5
SCHEMA = {
    "jpg": "fundus photograph cropped to its field of view, RGB, image_size x image_size",
    "json": "participant, eye (left, right; absent if unknown), circle (x, y, radius in pixels of the photograph)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of ``fundus``."""
    add_job_arguments(parser, "folder with photographs (jpg, png, tif), searched through", PATTERN)
    parser.add_argument(
        "--detector",
        choices=sorted(DETECTORS),
        default="mrmfast",
        help="how the field of view is found: our outline fit, or the published Hough transform (default: %(default)s)",
    )
    parser.add_argument(
        "--brightness-percent",
        type=share(50),
        default=0.5,
        metavar="P",
        help="drop this share of the darkest and of the brightest pictures of each eye (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Preprocess a folder of photographs; return 0, or 3 if files could not be read.

    Raises
    ------
    UserError
        SRC is missing or empty, nothing in it is usable, or DATASET was begun with other arguments.
    """
    files, masks = find_files(arguments.source, PICTURE_SUFFIXES, _is_mask)
    if masks:
        print(f"fundus: {masks} masks are not photographs and are left out")
    sources, counts = name_sources(arguments, "fundus", files)
    return run_image_command(
        arguments,
        "fundus",
        sources,
        partial(crop_photograph, size=arguments.size, detector=arguments.detector),
        choices={"detector": arguments.detector, "brightness_percent": arguments.brightness_percent},
        counts={**counts, "masks_left_out": masks},
        schema=SCHEMA,
        brightness_percent=arguments.brightness_percent,
    )


def _is_mask(path: PurePosixPath) -> bool:
    """Vessel, lesion and field-of-view masks come with public sets of photographs."""
    folders = {part.lower() for part in path.parts[:-1]}
    return "masks" in folders or any(word in path.stem.lower() for word in ("vessel", "mask"))


def crop_photograph(path: Path, source: Source, *, size: int, detector: str) -> Outcome:
    """Crop one photograph to its field of view.

    Raises
    ------
    Unreadable, SetAside
        Not a whole image; no circle, or nothing to see in it.
    """
    # The published detector works on the full photograph; ours needs no more than a few hundred pixels.
    image, reduction = read_picture(path, 2 * size if detector == "mrmfast" else 0)
    circle = DETECTORS[detector](image)
    if circle is None:
        raise SetAside("no circle")
    picture = crop(image, circle, MARGIN / reduction, size)
    fault = content_fault(picture)
    if fault:
        raise SetAside(fault)
    at = circle.scaled(reduction)
    return Outcome([Picture(picture, {"circle": [round(v, 1) for v in (at.x, at.y, at.radius)]})])
