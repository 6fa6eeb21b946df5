"""The sorted list of source files is cut into parts; a worker processes one part after another.

A part is two files: the encoded images end to end, and a JSON that lists them, written last, each aside and renamed.
A part whose source files are unchanged is never processed twice.
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
    """Consecutive source files, and the two files that become of them.

    Attributes
    ----------
    root : Path
        Source folder.
    stem : Path
        The part's files without their suffixes.
    sources : list of SourceFile
    """

    root: Path
    stem: Path
    sources: list[SourceFile]

    @property
    def payload(self) -> Path:
        """The encoded images, end to end."""
        return self.stem.with_suffix(".jpegs")

    @property
    def record(self) -> Path:
        """What is in the payload and what is not; its presence means that the part is done."""
        return self.stem.with_suffix(".json")

    @property
    def current(self) -> Path:
        """Names the file that is being processed, so that one that kills its worker is known."""
        return self.stem.with_suffix(".current")

    def state(self) -> list[list[int]]:
        """Return size and modification time of each source file."""
        return [size_and_time(self.root / source.file) for source in self.sources]

    def is_done(self) -> bool:
        """Tell whether the part is stored and its source files are still those it was made of."""
        if not self.record.exists():
            return False
        record = json.loads(self.record.read_bytes())
        return record["state"] == self.state() and size_and_time(self.payload)[0] == record["bytes"]


def size_and_time(path: Path) -> list[int]:
    """Return size and modification time of a file, -1 where the file cannot be inspected."""
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
    """What the source files of a part became."""

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
        """Return what the part's record holds besides the state of the source files."""
        return {
            "bytes": self.size,
            "rows": self.rows,
            "excluded": self.excluded,
            "unreadable": self.unreadable,
            "notes": self.notes,
        }


def process_part(process: Callable[[Path, SourceFile], Outcome], part: Part) -> None:
    """Process the files of a part: store their images, then the record.

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
                if outcome.note:
                    contents.notes.append({"file": source.shown, **outcome.note})
                for image in outcome.images:
                    contents.add(source, image, payload)
    with write_aside(part.record) as file:
        os.fchmod(file.fileno(), 0o600)  # file names and participants
        json.dump({"state": state, **contents.record()}, file)


@contextmanager
def _current_file(part: Part) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes down which file is being processed; the note is removed at the end."""
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
    """Return where the name of the file stands that a worker was processing; names hold participants' ids."""
    return f"the file named in {part.current}"
