"""Last step of image preprocessing: apply the brightness limits, then write shards, table, manifest and report."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.image_shards import Sample, finalise_images, write_shard
from mrmfast.formats.manifest import Shard
from preprocess import parallel
from preprocess.images.job import ImageJob
from preprocess.images.outcome import REMEDIES
from preprocess.images.partition import Part
from preprocess.images.source_table import sources_path, write_sources

StoredImage = tuple[Path, dict[str, Any]]  # payload of its part, row of the part's record


def finalise(job: ImageJob, parts: list[Part], arguments: argparse.Namespace) -> dict[str, Any]:
    """Apply the brightness limits, write shards, table, manifest and report.

    Parameters
    ----------
    job : ImageJob
    parts : list of Part
        All parts; all must be done.
    arguments : Namespace
        ``workers`` and ``scheduler``: :func:`preprocess.parallel.run_parts`.

    Returns
    -------
    dict
        The report, as written to ``reports/COMMAND.json``.

    Raises
    ------
    UserError
        No image is kept.
    """
    records = [json.loads(part.record.read_bytes()) for part in parts]
    images = [(part.payload, row) for part, record in zip(parts, records, strict=True) for row in record["rows"]]
    beyond = brightness_limits([row for _, row in images], job.brightness_percent)
    excluded = [entry for record in records for entry in record["excluded"]]
    excluded += [{"file": images[number][1]["file"], "reason": reason} for number, reason in sorted(beyond.items())]
    unreadable = [entry for record in records for entry in record["unreadable"]]
    kept = [image for number, image in enumerate(images) if number not in beyond]
    notes = [note for record in records for note in record["notes"]]
    remarks = Counter(remark for note in notes for remark in note.get("remarks", []))
    counts = {
        "found": len(job.sources),
        "written": len(kept),
        "participants": len({row["participant"] for _, row in kept}),
        "unreadable": len(unreadable),
        "excluded": dict(sorted(Counter(entry["reason"] for entry in excluded).items())),
        "remarks": dict(sorted(remarks.items())),
        **job.counts,
    }
    report = {
        "command": job.command,
        "counts": counts,
        "unreadable": unreadable,
        "excluded": sorted(excluded, key=lambda entry: (entry["file"], entry["reason"])),
        "sources": notes,
    }
    _write_report(job, report)
    write_sources(sources_path(job.dataset, job.command), _source_rows(job, [row for _, row in kept]))
    if not kept:
        raise _no_image(job, counts)
    _write_images(job, kept, {**counts, "pixels": pixel_statistics([row for _, row in kept], job)}, arguments)
    return report


def _source_rows(job: ImageJob, rows: list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Yield the rows of the table of sources: eye, visit, class, slide and labels beside the file."""
    source_of = {source.number: source for source in job.sources}
    for row in rows:
        source = source_of[int(row["key"].partition("-")[0])]
        known = {"key": row["key"], "participant": source.participant, "file": source.shown, **source.metadata}
        labels = {f"table.{name}" if name in known else name: text for name, text in source.labels.items()}
        yield known | labels


def brightness_limits(rows: list[dict[str, Any]], percent: float) -> dict[int, str]:
    """Choose the darkest and the brightest images, separately for each eye.

    Parameters
    ----------
    rows : list of dict
        With ``sums`` (red, green, blue) and ``metadata``; images without an eye form a separate group.
    percent : float
        Percentage to exclude at each end; the number of images is rounded down.

    Returns
    -------
    dict
        Row number -> ``"too dark"`` or ``"too bright"``.
    """
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row["metadata"].get("eye", ""), []).append(number)
    beyond: dict[int, str] = {}
    for members in groups.values():
        members.sort(key=lambda number: (sum(rows[number]["sums"]), number))
        count = int(len(members) * percent / 100)
        beyond.update(dict.fromkeys(members[:count], "too dark"))
        beyond.update(dict.fromkeys(members[len(members) - count :], "too bright"))
    return beyond


def pixel_statistics(rows: list[dict[str, Any]], job: ImageJob) -> dict[str, Any]:
    """Return mean and standard deviation of red, green and blue, 0..1, over stored training images only."""
    train = [row for row in rows if job.splits.of(row["participant"]) == "train"]
    if not train:
        return {"of": "train", "images": 0, "mean": None, "std": None}
    # Python's integers are exact: the order of the images does not change the result.
    count = len(train) * job.image_size**2
    sums = [sum(row["sums"][channel] for row in train) for channel in range(3)]
    squares = [sum(row["squares"][channel] for row in train) for channel in range(3)]
    variances = [(count * q - s * s) / count**2 for s, q in zip(sums, squares, strict=True)]
    return {
        "of": "train",
        "images": len(train),
        "mean": [round(s / count / 255, 6) for s in sums],
        "std": [round(v**0.5 / 255, 6) for v in variances],
    }


def _write_report(job: ImageJob, report: dict[str, Any]) -> None:
    with write_aside(job.report) as file:
        os.fchmod(file.fileno(), 0o600)  # the file names hold participant ids
        file.write(json.dumps(report, indent=1) + "\n")


def _no_image(job: ImageJob, counts: dict[str, Any]) -> UserError:
    reasons = Counter(counts["excluded"]) + Counter(unreadable=counts["unreadable"])
    remedies = "".join(f"; {REMEDIES[reason]}" for reason in counts["excluded"] if reason in REMEDIES)
    return UserError(
        f"{job.root}: none of {len(job.sources)} files gave an image "
        f"({', '.join(f'{count} {reason}' for reason, count in reasons.items())}); they are listed in {job.report}"
        f"{remedies}"
    )


@dataclass(frozen=True)
class _ShardTask:
    """One shard to write: where its images lie."""

    dataset: Path
    number: int
    images: list[StoredImage]

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of the shard, in order."""
        for payload, row in self.images:
            with open(payload, "rb") as file:
                file.seek(row["offset"])
                jpeg = file.read(row["size"])
            yield Sample(key=row["key"], jpeg=jpeg, participant=row["participant"], metadata=row["metadata"])


def _write_shard(_: None, task: _ShardTask) -> tuple[Shard, list[dict[str, Any]]]:
    return write_shard(task.dataset, task.number, task.samples())


def _write_images(
    job: ImageJob, images: list[StoredImage], statistics: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Write shards, table and manifest; remove the shards of an earlier run that kept more images."""
    starts = range(0, len(images), job.samples_per_shard)
    tasks = [
        _ShardTask(job.dataset.absolute(), number, images[start : start + job.samples_per_shard])
        for number, start in enumerate(starts)
    ]
    sizes = [len(task.images) for task in tasks]
    # Threads are safe for a single shard: copying releases the interpreter lock, and no decoder runs in this step.
    shards = parallel.run_parts(
        _write_shard, None, tasks, sizes, arguments, f"{job.command}: shards", "image", processes=len(tasks) > 1
    )
    finalise_images(job.dataset, shards, image_size=job.image_size, schema=job.schema, statistics=statistics)
    for path in (job.dataset / "images").glob("shard-*"):
        if int(path.stem.removeprefix("shard-")) >= len(tasks):
            path.unlink()
