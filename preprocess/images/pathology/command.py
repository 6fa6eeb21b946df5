"""``python -m preprocess pathology``: slide tiles or whole slides to image shards.

Blank and pen-marked tiles of a folder of tile images are excluded. Whole slides are tiled at 20x where they have
tissue; with ``--whole-slide`` each slide is downsampled to one image, as published.
"""

from __future__ import annotations

import argparse
import hashlib
from functools import partial
from pathlib import Path, PurePosixPath

import cv2

from preprocess.images.command import (
    ImageCommand,
    add_job_arguments,
    add_reading_arguments,
    find_sources,
    integer,
    read_options,
    run_image_command,
)
from preprocess.images.image_file import ReadOptions, read_image
from preprocess.images.outcome import Excluded, Outcome, ProcessedImage
from preprocess.images.partition import FILES_PER_PART
from preprocess.images.pathology.resolution import PLAUSIBLE
from preprocess.images.pathology.slide import (
    SLIDE_SUFFIXES,
    Tiling,
    cut_tiles,
    is_slide,
    read_slide,
    series_of,
    shrink_slide,
)
from preprocess.images.pathology.tissue import tile_fault
from preprocess.images.sources import IMAGE_SUFFIXES, SourceFile
from preprocess.splits import fraction

SCHEMA = {
    "jpg": "H&E tile or whole slide, RGB, image_size x image_size",
    "json": "participant (TCGA case), slide; of a tile from a whole slide x, y, side, of a shrunk slide slide_size "
    "(pixels at full resolution)",
}
# Arguments that determine the output bytes.
CHOICES = (
    "magnification",
    "mpp",
    "tile",
    "tiles_per_slide",
    "min_tissue",
    "whole_slide",
    "one_slide_per_participant",
    "seed",
    "bits",
    "max_image_mb",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command line of ``pathology``."""
    add_job_arguments(parser, "folder with tiles (image files) or whole slides (svs, tiled tif, dcm, ...)")
    add_reading_arguments(parser)
    parser.add_argument(
        "--magnification",
        type=integer(1),
        default=20,
        help="magnification (objective power) of tiles from whole slides (default: %(default)s)",
    )
    parser.add_argument(
        "--mpp",
        type=_microns,
        metavar="MICRONS",
        help="microns per pixel of all slides at full resolution (default: the pixel size that a slide records, else "
        "its objective power)",
    )
    parser.add_argument(
        "--tile",
        type=integer(16),
        default=512,
        help="tile size in pixels at this magnification (default: %(default)s)",
    )
    parser.add_argument(
        "--tiles-per-slide",
        type=integer(1),
        default=64,
        help="maximum number of tiles per slide (default: %(default)s)",
    )
    parser.add_argument(
        "--min-tissue",
        type=fraction(1),
        default=0.25,
        help="minimum fraction of tissue in a tile (default: %(default)s)",
    )
    parser.add_argument(
        "--whole-slide", action="store_true", help="downsample each whole slide to one image instead of tiling it"
    )
    parser.add_argument(
        "--one-slide-per-participant", action="store_true", help="keep one slide per participant, sampled with --seed"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed for sampling slides and tiles (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Preprocess a folder of tiles or slides; return 0, or 3 if files could not be read.

    Raises
    ------
    UserError
        SRC is missing or empty, no file is usable, or DATASET was created with other arguments.
    """
    files, counts = find_sources(arguments, "pathology", IMAGE_SUFFIXES + SLIDE_SUFFIXES, _is_mask)
    sources = one_file_per_series(arguments.source, files)
    counts["dicom_levels"] = len(files) - len(sources)
    if arguments.one_slide_per_participant:
        sources = one_slide_each(sources, arguments.seed)
    tiling = Tiling(
        size=arguments.size,
        magnification=arguments.magnification,
        tile=arguments.tile,
        tiles=arguments.tiles_per_slide,
        seed=arguments.seed,
        min_tissue=arguments.min_tissue,
        mpp=arguments.mpp,
    )
    slides = any(source.file.lower().endswith(SLIDE_SUFFIXES) for source in files)
    command = ImageCommand(
        name="pathology",
        process=partial(
            process_file, tiling=tiling, shrink=arguments.whole_slide, options=read_options(arguments, background=255)
        ),
        choices={name: getattr(arguments, name) for name in CHOICES},
        counts={**counts, "slides_not_chosen": len(files) - len(sources) - counts["dicom_levels"]},
        schema=SCHEMA,
        files_per_part=1 if slides else FILES_PER_PART,
    )
    return run_image_command(command, arguments, sources)


def _microns(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not PLAUSIBLE[0] <= value <= PLAUSIBLE[1]:
        raise argparse.ArgumentTypeError(f"must be a number from {PLAUSIBLE[0]} to {PLAUSIBLE[1]:g} (got {text!r})")
    return value


def _is_mask(path: PurePosixPath) -> bool:
    return "masks" in {part.lower() for part in path.parts[:-1]}


def one_file_per_series(root: Path, sources: list[SourceFile]) -> list[SourceFile]:
    """Keep the first file of each DICOM series of a folder: the others are levels and labels of the same slide."""
    seen: set[tuple[Path, str]] = set()
    kept = []
    for source in sources:
        path = root / source.file
        series = series_of(path)
        if series is None or (path.parent, series) not in seen:
            kept.append(source)
        if series is not None:
            seen.add((path.parent, series))
    return kept


def one_slide_each(sources: list[SourceFile], seed: int) -> list[SourceFile]:
    """Keep the files of one slide of each participant: the one with the smallest keyed hash.

    Parameters
    ----------
    sources : list of SourceFile
    seed : int
        Seed of the choice.

    Returns
    -------
    list of SourceFile
        In the same order.
    """

    def slide_of(source: SourceFile) -> str:
        return source.metadata.get("slide") or str(PurePosixPath(source.file).with_suffix(""))

    def draw(slide: str) -> bytes:
        return hashlib.sha256(f"{seed}:{slide}".encode()).digest()

    chosen: dict[str, str] = {}
    for source in sources:
        slide = slide_of(source)
        chosen[source.participant] = min(chosen.get(source.participant, slide), slide, key=draw)
    return [source for source in sources if slide_of(source) == chosen[source.participant]]


def process_file(path: Path, source: SourceFile, *, tiling: Tiling, shrink: bool, options: ReadOptions) -> Outcome:
    """Convert one tile or one whole slide into images; with `shrink`, a whole slide becomes one image.

    Raises
    ------
    Unreadable, Excluded
        The image or slide is incomplete; it has no tissue or only ink.
    """
    if is_slide(path, tiling.tile):
        if shrink:
            return read_slide(path, partial(shrink_slide, size=tiling.size))
        return read_slide(path, partial(cut_tiles, name=path.name, tiling=tiling))
    tile, _, remarks = read_image(path, options=options)
    fault = tile_fault(tile, tiling.min_tissue)
    if fault:
        raise Excluded(fault)
    pixels = cv2.resize(tile, (tiling.size, tiling.size), interpolation=cv2.INTER_AREA)
    return Outcome([ProcessedImage(pixels, {})], remarks=remarks)
