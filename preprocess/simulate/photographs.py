"""Both fundus images of every participant, drawn by a pool of processes; existing images are kept."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mrmfast.atomic import write_aside
from preprocess import parallel
from preprocess.simulate.cohort import EYES, bad_photographs, stream
from preprocess.simulate.fundus_image import CAMERAS, photograph
from preprocess.simulate.spoiled import spoil

_JPEG_QUALITY = 90
PEOPLE_PER_PART = 8


@dataclass(frozen=True)
class Sitting:
    """The input of both images of one participant; ``bad`` has the kind of each bad image by eye."""

    index: int
    eid: int
    traits: dict[str, float]
    bad: dict[str, str]


def photograph_name(eid: int, eye: str) -> str:
    """Return the file name of an image."""
    return f"{eid}_{eye}_0.jpg"


def take(folder: Path, seed: int, sitting: Sitting) -> None:
    """Draw and write the missing images of one participant."""
    cv2.setNumThreads(1)  # the pool already uses all cores
    camera = CAMERAS[int(stream(seed, "camera", sitting.index).integers(len(CAMERAS)))]
    for number, eye in enumerate(EYES):
        path = folder / photograph_name(sitting.eid, eye)
        if path.exists():
            continue
        rng = stream(seed, "photograph", sitting.index, number)
        image = photograph(sitting.traits, eye, camera, rng)
        if eye in sitting.bad:
            image = spoil(image, sitting.bad[eye], rng)
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        with write_aside(path, "wb") as handle:
            handle.write(encoded.tobytes())


def take_part(job: tuple[Path, int], sittings: list[Sitting]) -> None:
    """Draw and write the missing images of several participants; `job` is the folder and the seed."""
    for sitting in sittings:
        take(*job, sitting)


def _sittings(seed: int, ids: np.ndarray, traits: dict[str, np.ndarray]) -> Iterator[Sitting]:
    bad = bad_photographs(seed, len(ids))
    for index, eid in enumerate(ids.tolist()):
        kinds = {eye: bad[index, eye] for eye in EYES if (index, eye) in bad}
        yield Sitting(index, eid, {name: float(values[index]) for name, values in traits.items()}, kinds)


def take_all(folder: Path, seed: int, ids: np.ndarray, traits: dict[str, np.ndarray], workers: int) -> None:
    """Write ``{id}_{eye}_0.jpg`` for all participants.

    Parameters
    ----------
    ids
        Participant ids, shape (N,).
    traits
        Trait name -> values, shape (N,).
    """
    sittings = list(_sittings(seed, ids, traits))
    tasks = [sittings[start : start + PEOPLE_PER_PART] for start in range(0, len(sittings), PEOPLE_PER_PART)]
    parallel.run_parts(
        take_part,
        (folder, seed),
        tasks,
        [len(task) for task in tasks],
        argparse.Namespace(workers=workers, scheduler=None),
        "photographs",
        "participant",
        processes=True,
    )
