"""Finalise image preprocessing: decide what needs all parts, then write shards, table, manifest and report."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.image_shards import Sample, finalise_images, write_shard
from mrmfast.formats.manifest import Shard
from preprocess.images.workers import in_parallel

if TYPE_CHECKING:
    from preprocess.images.partition import Job, Part


def brightness_cut(rows: list[dict[str, Any]], percent: float) -> dict[int, str]:
    """Choose the darkest and the brightest pictures, each eye by itself.

    Parameters
    ----------
    rows : list of dict
        With ``sums`` (red, green, blue) and ``metadata``; pictures without an eye are a group of their own.
    percent : float
        Share to drop at each end; the number is rounded down.

    Returns
    -------
    dict
        Row number -> ``"too dark"`` or ``"too bright"``.
    """
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row["metadata"].get("eye", ""), []).append(number)
    dropped: dict[int, str] = {}
    for members in groups.values():
        members.sort(key=lambda number: (sum(rows[number]["sums"]), number))
        count = int(len(members) * percent / 100)
        dropped.update(dict.fromkeys(members[:count], "too dark"))
        dropped.update(dict.fromkeys(members[len(members) - count :], "too bright"))
    return dropped


@dataclass(frozen=True)
class _ShardTask:
    """One shard to write: where its pictures lie."""

    dataset: Path
    number: int
    rows: list[tuple[Path, dict[str, Any]]]


def _do_shard(task: _ShardTask) -> tuple[Shard, list[dict[str, Any]]]:
    return write_shard(task.dataset, task.number, _samples(task))


def _samples(task: _ShardTask) -> Iterator[Sample]:
    for payload, row in task.rows:
        with open(payload, "rb") as file:
            file.seek(row["offset"])
            jpeg = file.read(row["size"])
        yield Sample(key=row["key"], jpeg=jpeg, participant=row["participant"], metadata=row["metadata"])


def finalise(job: Job, parts: list[Part], workers: int) -> dict[str, Any]:
    """Decide the brightness cut, write shards, table, manifest and report.

    Parameters
    ----------
    job : Job
    parts : list of Part
        All of them, all done.
    workers : int

    Returns
    -------
    dict
        The report, as written to ``reports/COMMAND.json``.

    Raises
    ------
    UserError
        No file gave a picture that can be kept.
    """
    records = [json.loads(part.record.read_bytes()) for part in parts]
    set_aside = [entry for record in records for entry in record["set_aside"]]
    unreadable = [entry for record in records for entry in record["unreadable"]]
    placed = [(part.payload, row) for part, record in zip(parts, records, strict=True) for row in record["rows"]]
    dropped = brightness_cut([row for _, row in placed], job.brightness_percent)
    set_aside += [{"file": placed[number][1]["file"], "reason": why} for number, why in sorted(dropped.items())]
    kept = [entry for number, entry in enumerate(placed) if number not in dropped]
    statistics = {
        "found": len(job.sources),
        "written": len(kept),
        "participants": len({row["participant"] for _, row in kept}),
        "unreadable": len(unreadable),
        "set_aside": dict(sorted(Counter(entry["reason"] for entry in set_aside).items())),
        **job.counts,
        "pixels": _pixel_statistics([row for _, row in kept], job),
    }
    report = {
        "command": job.command,
        "counts": {name: value for name, value in statistics.items() if name != "pixels"},
        "unreadable": unreadable,
        "set_aside": sorted(set_aside, key=lambda entry: (entry["file"], entry["reason"])),
        "sources": [note for record in records for note in record["notes"]],
    }
    with write_aside(job.report) as file:
        os.fchmod(file.fileno(), 0o600)  # the file names hold participant ids
        file.write(json.dumps(report, indent=1) + "\n")
    if not kept:
        reasons = Counter(entry["reason"] for entry in set_aside) + Counter(unreadable=len(unreadable))
        raise UserError(
            f"{job.root}: none of {len(job.sources)} files gave a picture "
            f"({', '.join(f'{count} {reason}' for reason, count in reasons.items())}); they are listed in {job.report}"
        )
    step = job.samples_per_shard
    tasks = [_ShardTask(job.dataset, start // step, kept[start : start + step]) for start in range(0, len(kept), step)]
    sizes = [len(task.rows) for task in tasks]
    shards = in_parallel(_do_shard, tasks, workers, sizes, len(kept), f"{job.command}: shards")
    finalise_images(job.dataset, shards, image_size=job.image_size, schema=job.schema, statistics=statistics)
    for path in (job.dataset / "images").glob("shard-*"):  # of an earlier run that kept more pictures
        if int(path.stem.removeprefix("shard-")) >= len(tasks):
            path.unlink()
    return report


def _pixel_statistics(rows: list[dict[str, Any]], job: Job) -> dict[str, Any]:
    """Mean and standard deviation of red, green and blue, 0..1, of training participants' stored pictures only."""
    train = [row for row in rows if job.splits.of(row["participant"]) == "train"]
    if not train:
        return {"of": "train", "pictures": 0, "mean": None, "std": None}
    # Python's integers are exact, so neither order nor number of pictures changes the last digit.
    count = len(train) * job.image_size**2
    sums = [sum(row["sums"][channel] for row in train) for channel in range(3)]
    squares = [sum(row["squares"][channel] for row in train) for channel in range(3)]
    variances = [(count * q - s * s) / count**2 for s, q in zip(sums, squares, strict=True)]
    return {
        "of": "train",
        "pictures": len(train),
        "mean": [round(s / count / 255, 6) for s in sums],
        "std": [round(v**0.5 / 255, 6) for v in variances],
    }
