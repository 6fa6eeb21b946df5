"""The job of an image command, and the record of the job in the dataset folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.manifest import SplitRule, claim_splits, read_manifest
from mrmfast.formats.pseudonyms import Pseudonyms
from preprocess.images.outcome import Outcome
from preprocess.images.partition import FILES_PER_PART, size_and_time
from preprocess.images.sources import SourceFile

RECORD = "images/preprocess.json"


@dataclass(frozen=True)
class ImageJob:
    """Everything that determines the bytes of a dataset's images.

    Attributes
    ----------
    command : str
        Names the report, ``reports/COMMAND.json``.
    root, dataset : Path
        Folder of the source files; dataset folder.
    sources : list of SourceFile
        Sorted; numbers count from 0.
    process : callable
        From a file's path and its SourceFile to an Outcome; raises Unreadable or Excluded. Must be picklable.
    arguments : dict
        The user's arguments, JSON values only; a rerun must have the same arguments.
    image_size : int
        Side of the stored images, pixels.
    samples_per_shard : int
    splits : SplitRule
    schema : dict
        Extension of a tar member -> what it holds.
    brightness_percent : float
        Share of the images to exclude at each end of the brightness scale, each eye by itself, percent.
    files_per_part : int
    counts : dict
        Further counts for report and manifest.
    pseudonyms : Pseudonyms
        What the ids of `sources` were replaced with.
    """

    command: str
    root: Path
    dataset: Path
    sources: list[SourceFile]
    process: Callable[[Path, SourceFile], Outcome]
    arguments: dict[str, Any]
    image_size: int
    samples_per_shard: int
    splits: SplitRule
    schema: dict[str, str]
    brightness_percent: float = 0.0
    files_per_part: int = FILES_PER_PART
    counts: dict[str, Any] = field(default_factory=dict)
    pseudonyms: Pseudonyms = field(default_factory=Pseudonyms)

    @property
    def report(self) -> Path:
        """Path of the report."""
        return self.dataset / "reports" / f"{self.command}.json"


def begin(job: ImageJob) -> dict[str, Any]:
    """Claim the dataset for a job: record its arguments, or check that they are the recorded ones.

    Returns
    -------
    dict
        The record.

    Raises
    ------
    UserError
        The dataset was created with another command, other arguments, files or participants.
    """
    listing = [
        [source.shown, source.participant, source.metadata, *([source.labels] if source.labels else [])]
        for source in job.sources
    ]
    request = {
        "command": job.command,
        "arguments": job.arguments,
        "files": len(job.sources),
        "files_sha256": hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest(),
    }
    claim_splits(job.dataset, job.splits)
    job.pseudonyms.claim(job.dataset)
    for leftover in list((job.dataset / "images").rglob(".*.partial")):
        leftover.unlink(missing_ok=True) if leftover.is_file() else shutil.rmtree(leftover)
    path = job.dataset / RECORD
    if not path.exists():
        _write_record(job, **request, versions=_versions(), finished=None)
    record = json.loads(path.read_bytes())
    _check_record(record, request, path)
    return record


def _check_record(record: dict[str, Any], request: dict[str, Any], path: Path) -> None:
    """Raise an error if the dataset was created with another request."""
    remedy = f"repeat the first run's arguments, use another --out, or delete {path.parent} to start again"
    if record["command"] != request["command"]:
        raise UserError(f"{path}: was created by the command {record['command']}, not {request['command']}; {remedy}")
    for name in sorted(record["arguments"].keys() | request["arguments"].keys()):
        before, now = record["arguments"].get(name), request["arguments"].get(name)
        if before != now:
            raise UserError(f"{path}: was created with {name} = {before}, not {now}; {remedy}")
    if record["files_sha256"] != request["files_sha256"]:
        raise UserError(
            f"{path}: was created from {record['files']} files; {request['files']} found now, or their names or "
            f"participants changed; restore the files, use another --out, or delete {path.parent} to start again"
        )


def record_finished(job: ImageJob) -> None:
    """Record that the dataset is complete, and of which source files."""
    _write_record(job, finished=_sources_digest(job))


def is_complete(job: ImageJob, record: dict[str, Any]) -> bool:
    """Whether the dataset was finished and all its files exist.

    Raises
    ------
    UserError
        The source files changed after the dataset was finished.
    """
    if not record["finished"]:
        return False
    if record["finished"] != _sources_digest(job):
        raise UserError(
            f"{job.dataset / RECORD}: source files changed after this dataset was finished; use another --out, "
            f"or delete {job.dataset / 'images'} to start again"
        )
    shards = read_manifest(job.dataset).shards
    return (
        bool(shards)
        and job.report.exists()
        and all(size_and_time(job.dataset / shard.path)[0] == shard.bytes for shard in shards)
    )


def _versions() -> dict[str, str]:
    """Return the versions of the libraries whose decoders and encoders decide the bytes; recorded, not compared."""
    return {"numpy": np.__version__, "opencv": cv2.__version__, "pillow": PIL.__version__}


def _write_record(job: ImageJob, **fields: Any) -> None:
    path = job.dataset / RECORD
    record = {**(json.loads(path.read_bytes()) if path.exists() else {}), **fields}
    with write_aside(path) as file:
        file.write(json.dumps(record, indent=1) + "\n")


def _sources_digest(job: ImageJob) -> str:
    """Return a digest of the files' names and sizes, which detects changed sources of a finished dataset."""
    sizes = [[source.shown, size_and_time(job.root / source.file)[0]] for source in job.sources]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
