"""Fundus tiles with genetics for the loader's benchmark: real photographs where there are any, simulated ones else.

``python -m preprocess fundus`` crops the photographs to 768 px. A tile is one of these images, averaged down (OpenCV
INTER_AREA) so that the tile shows 70 to 100 % of its side, turned by a random angle, cut and mirrored in one bilinear
warp, and encoded as a JPEG of quality 94 (4:2:0). So pixels are those of real cameras, and there are as many different
files as are wanted.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import cv2
import numpy as np

from benchmarks.genetics.dataset import ENCODINGS, values, write_store
from benchmarks.harness import python
from mrmfast.data.genetics.store import pack_rows
from mrmfast.formats.image_shards import Sample, finalise_images, write_shard
from mrmfast.formats.manifest import SplitRule, claim_splits
from mrmfast.formats.sample_table import read_sample_table

SOURCE_SIDE, QUALITY = 768, 94
SHARES = (0.7, 1.0)  # of the side of an image that a tile shows
SHARDS = 8
PHOTOGRAPHS = Path(__file__).resolve().parents[3] / "shared" / "data" / "fundus"


def find_photographs(given: Path | None) -> Path | None:
    """Return the folder of photographs: the one given, MRMFAST_PHOTOGRAPHS, or beside the project; None: none."""
    named = given or (Path(os.environ["MRMFAST_PHOTOGRAPHS"]) if "MRMFAST_PHOTOGRAPHS" in os.environ else None)
    return named or (PHOTOGRAPHS if PHOTOGRAPHS.is_dir() else None)


def make(folder: Path, photographs: Path | None, tiles: int, size: int, seed: int = 0) -> Path:
    """Write a dataset of `tiles` images and 26,909 features a participant; what is there already is kept.

    Parameters
    ----------
    folder : Path
        Where it goes: ``tiles-224-4096`` and so on.
    photographs : Path, optional
        Folder of photographs; simulated ones without it.
    tiles : int
        Two of each participant.
    size : int
        Side, pixels.

    Returns
    -------
    Path
    """
    dataset = folder / f"tiles-{size}-{tiles}"
    if not (dataset / "genetics.zarr" / "burden").exists():
        write(dataset, _pictures(_cropped(folder, photographs)), tiles, size, np.random.default_rng(seed))
    return dataset


def _cropped(folder: Path, photographs: Path | None) -> Path:
    """Run the preprocessor, on simulated photographs if there are no others."""
    if photographs is None:
        photographs = folder / "simulated" / "fundus"
        subprocess.run(
            python("-m", "preprocess", "simulate", "--out", str(photographs.parent), "--participants", "24"), check=True
        )
    cropped = folder / "cropped"
    # Some photographs of public sets have no circle; the command names them and ends with 3.
    command = python("-m", "preprocess", "fundus", str(photographs), "--out", str(cropped), "--size", str(SOURCE_SIDE))
    subprocess.run([*command, "--accept-unreadable"], check=True)
    return cropped


def _pictures(dataset: Path) -> list[np.ndarray]:
    table = read_sample_table(str(dataset))
    shards = sorted((dataset / "images").glob("*.tar"))
    pictures = []
    for shard, offset, size in zip(table.shard, table.offset, table.size, strict=True):
        jpeg = np.fromfile(shards[shard], np.uint8, count=size, offset=offset)
        picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
        assert picture is not None, "the preprocessor wrote it"
        pictures.append(picture)
    return pictures


def write(dataset: Path, pictures: list[np.ndarray], tiles: int, size: int, generator: np.random.Generator) -> None:
    """Write a dataset of tiles cut from images, with 26,909 features a participant."""
    claim_splits(dataset, SplitRule(0, 0.0))
    participants = -(-tiles // 2)
    samples = []
    for number in range(tiles):
        tile = _tile(pictures[number % len(pictures)], size, generator)
        done, jpeg = cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        assert done, "OpenCV encodes any picture of 8 bits"
        samples.append(Sample(f"{number:09d}", jpeg.tobytes(), str(1_000_000 + 7 * (number // 2)), {}))
    per_shard = -(-tiles // SHARDS)
    parts = [
        write_shard(dataset, shard, samples[start : start + per_shard])
        for shard, start in enumerate(range(0, tiles, per_shard))
    ]
    finalise_images(dataset, parts, image_size=size, schema={"jpg": "RGB"}, statistics={})
    drawn = values(participants, 0)
    write_store(dataset, {name: pack_rows(kind, drawn[name]) for name, kind in ENCODINGS.items()}, participants)


def _tile(picture: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Average an image down, then turn, cut and mirror it in one warp."""
    side = round(size / generator.uniform(*SHARES))
    small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), generator.uniform(0, 360), 1)
    turn[:, 2] -= generator.integers(0, side - size + 1, 2)
    tile = cv2.warpAffine(small, turn, (size, size), flags=cv2.INTER_LINEAR)
    return tile[:, ::-1] if generator.random() < 0.5 else tile
