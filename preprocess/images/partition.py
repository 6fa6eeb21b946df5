"""Partition of the sorted list of source files into parts; a worker processes one part after another.

A part has two files: the concatenated encoded images, and a JSON record that lists the images. The record is written
last. Each file is written under a temporary name and renamed. A part with unchanged source files is not processed
again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import cv2

from mrmfast.atomic import write_aside
from preprocess.images.image_file import encode_jpeg, pixel_sums
from preprocess.images.outcome import Excluded, Outcome, ProcessedImage, Unreadable
from preprocess.images.sources import SourceFile

PARTS = "images/.parts"
FILES_PER_PART = 64


@dataclass(frozen=True)
class Part:
    """Consecutive source files, and the two files of the part.

    Attributes
    ----------
    root : Path
        Source folder.
    stem : Path
        Path of the part's files without suffix.
    sources : list of SourceFile
    """

    root: Path
    stem: Path
    sources: list[SourceFile]

    @property
    def payload(self) -> Path:
        """The concatenated encoded images."""
        return self.stem.with_suffix(".jpegs")

    @property
    def record(self) -> Path:
        """The list of images in the payload and of skipped files; its presence means that the part is done."""
        return self.stem.with_suffix(".json")

    @property
    def current(self) -> Path:
        """Contains the name of the file being processed: identifies a file that kills its worker."""
        return self.stem.with_suffix(".current")

    def state(self) -> list[list[int]]:
        """Return size and modification time of each source file."""
        return [size_and_time(self.root / source.file) for source in self.sources]

    def is_done(self) -> bool:
        """Whether the part is stored and its source files are unchanged."""
        if not self.record.exists():
            return False
        record = json.loads(self.record.read_bytes())
        return record["state"] == self.state() and size_and_time(self.payload)[0] == record["bytes"]


def size_and_time(path: Path) -> list[int]:
    """Return size and modification time of a file; -1 for both if the file cannot be inspected."""
    try:
        status = path.stat()
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def cut_into_parts(root: Path, dataset: Path, sources: list[SourceFile], files_per_part: int) -> list[Part]:
    """Return the parts of a sorted list of source files; paths are absolute, for workers of a cluster."""
    folder = (dataset / PARTS).absolute()
    return [
        Part(root.absolute(), folder / f"part-{number:06d}", sources[start : start + files_per_part])
        for number, start in enumerate(range(0, len(sources), files_per_part))
    ]


@dataclass
class _Contents:
    """The images and the skipped files of a part."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    excluded: list[dict[str, str]] = field(default_factory=list)
    unreadable: list[dict[str, str]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0

    def add(self, source: SourceFile, image: ProcessedImage, payload: IO[bytes]) -> None:
        """Append one image to the payload and list it."""
        jpeg = encode_jpeg(image.pixels)
        sums, squares = pixel_sums(jpeg)
        self.rows.append(
            {
                "key": f"{source.number:09d}{image.suffix}",
                "file": source.shown,
                "participant": source.participant,
                "metadata": {**source.metadata, **image.metadata},
                "offset": self.size,
                "size": len(jpeg),
                "sums": sums,
                "squares": squares,
            }
        )
        payload.write(jpeg)
        self.size += len(jpeg)

    def record(self) -> dict[str, Any]:
        """Return the content of the part's record except the state of the source files."""
        return {
            "bytes": self.size,
            "rows": self.rows,
            "excluded": self.excluded,
            "unreadable": self.unreadable,
            "notes": self.notes,
        }


def process_part(process: Callable[[Path, SourceFile], Outcome], part: Part) -> None:
    """Process the files of a part: store the images, then the record.

    Parameters
    ----------
    process : callable
        From a file's path and its SourceFile to an Outcome; raises Unreadable or Excluded.
    part : Part
    """
    if multiprocessing.parent_process() is not None:
        cv2.setNumThreads(1)  # the workers already fill the cores
    state = part.state()
    contents = _Contents()
    with _current_file(part) as mark, write_aside(part.payload, "wb") as payload:
        for source in part.sources:
            mark(source.shown)
            try:
                outcome = process(part.root / source.file, source)
            except Unreadable as error:
                contents.unreadable.append({"file": source.shown, "reason": str(error)})
            except Excluded as error:
                contents.excluded.append({"file": source.shown, "reason": str(error)})
            else:
                remarks = {"remarks": list(outcome.remarks)} if outcome.remarks else {}
                if outcome.note or remarks:
                    contents.notes.append({"file": source.shown, **outcome.note, **remarks})
                for image in outcome.images:
                    contents.add(source, image, payload)
    with write_aside(part.record) as file:
        os.fchmod(file.fileno(), 0o600)  # file names and participants
        json.dump({"state": state, **contents.record()}, file)


@contextmanager
def _current_file(part: Part) -> Iterator[Callable[[str], None]]:
    """Yield a function that records the name of the file being processed; the record is removed at the end."""
    part.current.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(part.current, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def mark(name: str) -> None:
        text = os.fsencode(name)
        os.pwrite(descriptor, text + b"\n", 0)
        os.ftruncate(descriptor, len(text) + 1)

    try:
        yield mark
        part.current.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def describe_crash(part: Part) -> str:
    """Describe the file that a worker was processing by the path of its record: file names may contain ids."""
    return f"the file named in {part.current}"
