"""Image preprocessing in parts: init, one part after another, finalise.

The sorted list of source files is cut into parts. A worker processes a part and stores its encoded pictures and a small
JSON, each written aside and renamed; a finished part is never done twice. Finalise makes the decisions that need all
parts (the brightness cut), copies the kept pictures into shards and writes table, manifest and report. Every byte
depends on the source files and the arguments alone, so a run that was killed and repeated, or that used more workers,
gives the same dataset.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
from filelock import FileLock, Timeout

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.manifest import SplitRule, claim_splits, read_manifest
from mrmfast.formats.pseudonyms import Pseudonyms
from preprocess.images.finalise import finalise
from preprocess.images.picture import Outcome, SetAside, Unreadable, encode_jpeg, pixel_sums
from preprocess.images.sources import Source
from preprocess.images.workers import in_parallel

RECORD = "images/preprocess.json"
PARTS = "images/.parts"
FILES_PER_PART = 64
STATUS_UNREADABLE = 3


@dataclass(frozen=True)
class Job:
    """All that decides the bytes of a dataset's images.

    Attributes
    ----------
    command : str
        Names the report, ``reports/COMMAND.json``.
    root, dataset : Path
        Where the source files are; the dataset folder.
    sources : list of Source
        Sorted; numbers count from 0.
    process : callable
        From a file's path and its Source to an Outcome; raises Unreadable or SetAside. Must be picklable.
    arguments : dict
        What the user chose, JSON values only; a rerun must choose the same.
    image_size : int
        Side of the pictures, pixels.
    samples_per_shard : int
    splits : SplitRule
    schema : dict
        Extension of a tar member -> what it holds.
    brightness_percent : float
        Share of the pictures to drop at each end of the brightness scale, each eye by itself, percent.
    files_per_part : int
    counts : dict
        Further counts for report and manifest.
    pseudonyms : Pseudonyms
        What the ids of `sources` were replaced with.
    """

    command: str
    root: Path
    dataset: Path
    sources: list[Source]
    process: Callable[[Path, Source], Outcome]
    arguments: dict[str, Any]
    image_size: int
    samples_per_shard: int
    splits: SplitRule
    schema: dict[str, str]
    brightness_percent: float = 0.0
    files_per_part: int = FILES_PER_PART
    counts: dict[str, int] = field(default_factory=dict)
    pseudonyms: Pseudonyms = field(default_factory=Pseudonyms)

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.dataset / "reports" / f"{self.command}.json"


def run_job(job: Job, *, workers: int, accept_unreadable: bool) -> tuple[dict[str, Any], int]:
    """Run or continue a job.

    Parameters
    ----------
    job : Job
    workers : int
        Processes.
    accept_unreadable : bool
        Unreadable files are counted in the report but are no reason for status 3.

    Returns
    -------
    dict
        The report.
    int
        0, or 3 if files could not be read.

    Raises
    ------
    UserError
        The dataset was begun with other arguments, another run is writing it, or no file is usable.
    """
    (job.dataset / "images").mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.dataset / "images" / ".preprocess.lock")
    try:
        with lock.acquire(timeout=0):
            record = _begin(job)
            if record["finished"] and _finished_is_whole(job, record):
                report = json.loads(job.report.read_bytes())
            else:
                parts = _parts(job)
                pending = [part for part in parts if not _is_done(part)]
                sizes = [len(part.sources) for part in pending]
                in_parallel(_do_part, pending, workers, sizes, len(job.sources), f"{job.command}: files")
                job.pseudonyms.check(job.dataset)  # genetics may have been written meanwhile
                report = finalise(job, parts, workers)
                # Parts stay until nothing can be mended any more, so that a rerun redoes only what changed.
                if not report["unreadable"] or accept_unreadable:
                    _write_record(job, finished=_sources_state(job))
                    shutil.rmtree(job.dataset / PARTS)
    except Timeout as error:
        raise UserError(f"{job.dataset}: another preprocessor is writing its images; wait for it or stop it") from error
    return report, STATUS_UNREADABLE if report["unreadable"] and not accept_unreadable else 0


# ---------------------------------------------------------------------------------------------------------------- init


def _begin(job: Job) -> dict[str, Any]:
    """Claim the dataset for this job: record its arguments, or check that they are the recorded ones."""
    listing = [[source.shown, source.participant, source.metadata] for source in job.sources]
    wanted = {
        "command": job.command,
        "arguments": job.arguments,
        "files": len(job.sources),
        "files_sha256": hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest(),
    }
    path = job.dataset / RECORD
    claim_splits(job.dataset, job.splits)
    job.pseudonyms.claim(job.dataset)
    for left in list((job.dataset / "images").rglob(".*.partial")):
        left.unlink(missing_ok=True) if left.is_file() else shutil.rmtree(left)
    if not path.exists():
        _write_record(job, **wanted, versions=_versions(), finished=None)
    record = json.loads(path.read_bytes())
    remedy = f"repeat the first run's arguments, use another --out, or delete {path.parent} to start again"
    if record["command"] != job.command:
        raise UserError(f"{path}: was begun by the command {record['command']}, not {job.command}; {remedy}")
    for name in sorted(record["arguments"].keys() | job.arguments.keys()):
        before, now = record["arguments"].get(name), job.arguments.get(name)
        if before != now:
            raise UserError(f"{path}: was begun with {name} = {before}, not {now}; {remedy}")
    if record["files_sha256"] != wanted["files_sha256"]:
        raise UserError(
            f"{path}: was begun with {record['files']} files; now there are {wanted['files']}, or their names or "
            f"participants changed; put the files back, use another --out, or delete {path.parent} to start again"
        )
    return record


def _versions() -> dict[str, str]:
    """Return the versions of the libraries whose decoders and encoders decide the bytes; recorded, not compared."""
    return {"numpy": np.__version__, "opencv": cv2.__version__, "pillow": PIL.__version__}


def _write_record(job: Job, **fields: Any) -> None:
    path = job.dataset / RECORD
    record = {**(json.loads(path.read_bytes()) if path.exists() else {}), **fields}
    with write_aside(path) as file:
        file.write(json.dumps(record, indent=1) + "\n")


def _sources_state(job: Job) -> str:
    """Digest of the files' names and sizes: tells a rerun whether the finished dataset is still theirs."""
    state = [[source.shown, _stat(job.root / source.file)[0]] for source in job.sources]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _stat(path: Path) -> list[int]:
    """Size and modification time of a file, -1 where it can't be looked at."""
    try:
        found = path.stat()
    except OSError:
        return [-1, -1]
    return [found.st_size, found.st_mtime_ns]


def _finished_is_whole(job: Job, record: dict[str, Any]) -> bool:
    """Tell whether a finished dataset's files are all there, and of these sources."""
    if record["finished"] != _sources_state(job):
        raise UserError(
            f"{job.dataset / RECORD}: source files changed after this dataset was finished; use another --out, "
            f"or delete {job.dataset / 'images'} to start again"
        )
    shards = read_manifest(job.dataset).shards
    return bool(shards) and job.report.exists() and all(_stat(job.dataset / s.path)[0] == s.bytes for s in shards)


# --------------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class Part:
    """A run of source files on its way to a worker."""

    root: Path
    stem: Path
    sources: list[Source]
    process: Callable[[Path, Source], Outcome]

    @property
    def payload(self) -> Path:
        """The encoded pictures, end to end."""
        return self.stem.with_suffix(".jpegs")

    @property
    def record(self) -> Path:
        """What is in the payload and what is not; its presence says that the part is done."""
        return self.stem.with_suffix(".json")

    def state(self) -> list[list[int]]:
        """Return size and modification time of each source file."""
        return [_stat(self.root / source.file) for source in self.sources]


def _parts(job: Job) -> list[Part]:
    step = job.files_per_part
    return [
        Part(
            job.root, job.dataset / PARTS / f"part-{start // step:06d}", job.sources[start : start + step], job.process
        )
        for start in range(0, len(job.sources), step)
    ]


def _is_done(part: Part) -> bool:
    """Tell whether a part is stored and its source files are still those it was made of."""
    if not part.record.exists():
        return False
    record = json.loads(part.record.read_bytes())
    return record["state"] == part.state() and _stat(part.payload)[0] == record["bytes"]


def _do_part(part: Part) -> None:
    """Process the files of a part and store the pictures end to end, then the JSON that says the part is done."""
    state = part.state()
    rows: list[dict[str, Any]] = []
    set_aside: list[dict[str, str]] = []
    unreadable: list[dict[str, str]] = []
    notes: list[dict[str, Any]] = []
    offset = 0
    with write_aside(part.payload, "wb") as file:
        for source in part.sources:
            try:
                outcome = part.process(part.root / source.file, source)
            except Unreadable as error:
                unreadable.append({"file": source.shown, "reason": str(error)})
                continue
            except SetAside as error:
                set_aside.append({"file": source.shown, "reason": str(error)})
                continue
            if outcome.note:
                notes.append({"file": source.shown, **outcome.note})
            for picture in outcome.pictures:
                jpeg = encode_jpeg(picture.pixels)
                sums, squares = pixel_sums(jpeg)
                rows.append(
                    {
                        "key": f"{source.number:09d}{picture.suffix}",
                        "file": source.shown,
                        "participant": source.participant,
                        "metadata": {**source.metadata, **picture.metadata},
                        "offset": offset,
                        "size": len(jpeg),
                        "sums": sums,
                        "squares": squares,
                    }
                )
                file.write(jpeg)
                offset += len(jpeg)
    with write_aside(part.record) as file:
        os.fchmod(file.fileno(), 0o600)
        record = {"state": state, "bytes": offset, "rows": rows, "set_aside": set_aside}
        json.dump({**record, "unreadable": unreadable, "notes": notes}, file)
