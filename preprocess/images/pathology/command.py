"""``python -m preprocess pathology``: slide tiles or whole slides to image shards.

A folder of tile images is taken as it is, without the blank and pen-marked ones. Whole slides are tiled at 20x where
there is tissue, or with ``--whole-slide`` shrunk to one picture each, as published.
"""

from __future__ import annotations

import argparse
import hashlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import cv2

from preprocess.images.command import add_job_arguments, name_sources, run_image_command, share, whole_number
from preprocess.images.partition import FILES_PER_PART
from preprocess.images.pathology.tissue import (
    SLIDE_SUFFIXES,
    is_slide,
    read_slide,
    slide_tiles,
    tile_fault,
    whole_slide,
)
from preprocess.images.picture import Outcome, Picture, SetAside, read_picture
from preprocess.images.sources import PICTURE_SUFFIXES, Source, find_files

# A TCGA barcode: project, site, patient; whatever follows names sample and slide.
PATTERN = r"(?P<slide>(?P<participant>TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?:-[A-Z0-9]+)*)"
SCHEMA = {
    "jpg": "H&E tile or whole slide, RGB, image_size x image_size",
    "json": "participant (TCGA case), slide; of a tile from a whole slide x, y, side, of a shrunk slide slide_size "
    "(pixels at full resolution)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of ``pathology``."""
    add_job_arguments(parser, "folder with tiles (jpg, png, tif) or whole slides (svs, tif pyramids, ...)", PATTERN)
    parser.add_argument(
        "--magnification", type=whole_number(1), default=20, help="of tiles from whole slides (default: %(default)s)"
    )
    parser.add_argument(
        "--tile",
        type=whole_number(16),
        default=512,
        help="side of a tile in pixels at that magnification (default: %(default)s)",
    )
    parser.add_argument(
        "--tiles-per-slide", type=whole_number(1), default=64, help="at most so many (default: %(default)s)"
    )
    parser.add_argument(
        "--min-tissue", type=share(1), default=0.25, help="least share of tissue in a tile (default: %(default)s)"
    )
    parser.add_argument(
        "--whole-slide", action="store_true", help="shrink each whole slide to one picture in place of tiling it"
    )
    parser.add_argument(
        "--one-slide-per-participant", action="store_true", help="keep one slide of each patient, drawn with --seed"
    )
    parser.add_argument("--seed", type=int, default=0, help="draws slides and tiles (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Preprocess a folder of tiles or slides; return 0, or 3 if files could not be read.

    Raises
    ------
    UserError
        SRC is missing or empty, nothing in it is usable, or DATASET was begun with other arguments.
    """
    files, masks = find_files(arguments.source, PICTURE_SUFFIXES + SLIDE_SUFFIXES, _is_mask)
    sources, counts = name_sources(arguments, "pathology", files)
    if arguments.one_slide_per_participant:
        sources = one_slide_each(sources, arguments.seed)
    names = (
        "magnification",
        "tile",
        "tiles_per_slide",
        "min_tissue",
        "whole_slide",
        "one_slide_per_participant",
        "seed",
    )
    choices = {name: getattr(arguments, name) for name in names}
    slides = any(file.lower().endswith(SLIDE_SUFFIXES) for file in files)
    return run_image_command(
        arguments,
        "pathology",
        sources,
        partial(picture_source, size=arguments.size, choices=choices),
        choices=choices,
        counts={**counts, "masks_left_out": masks, "slides_not_chosen": len(files) - len(sources)},
        schema=SCHEMA,
        files_per_part=1 if slides else FILES_PER_PART,
    )


def _is_mask(path: PurePosixPath) -> bool:
    return "masks" in {part.lower() for part in path.parts[:-1]}


def one_slide_each(sources: list[Source], seed: int) -> list[Source]:
    """Keep the files of one slide of each participant: the one with the smallest keyed hash.

    Parameters
    ----------
    sources : list of Source
    seed : int
        Changes the choice.

    Returns
    -------
    list of Source
        In the same order.
    """

    def slide_of(source: Source) -> str:
        return source.metadata.get("slide") or PurePosixPath(source.file).stem

    def draw(slide: str) -> bytes:
        return hashlib.sha256(f"{seed}:{slide}".encode()).digest()

    chosen: dict[str, str] = {}
    for source in sources:
        slide = slide_of(source)
        chosen[source.participant] = min(chosen.get(source.participant, slide), slide, key=draw)
    return [source for source in sources if slide_of(source) == chosen[source.participant]]


def picture_source(path: Path, source: Source, *, size: int, choices: dict[str, Any]) -> Outcome:
    """Turn one tile or one whole slide into pictures.

    Raises
    ------
    Unreadable, SetAside
        Not a whole image or slide; nothing but glass or ink.
    """
    if is_slide(path):
        if choices["whole_slide"]:
            return read_slide(path, partial(whole_slide, size=size))
        tiling = partial(
            slide_tiles,
            name=path.name,
            size=size,
            magnification=choices["magnification"],
            tile=choices["tile"],
            tiles=choices["tiles_per_slide"],
            seed=choices["seed"],
            min_tissue=choices["min_tissue"],
        )
        return read_slide(path, tiling)
    tile, _ = read_picture(path)
    fault = tile_fault(tile, choices["min_tissue"])
    if fault:
        raise SetAside(fault)
    return Outcome([Picture(cv2.resize(tile, (size, size), interpolation=cv2.INTER_AREA), {})])
