"""Files of a dataset that are neither shards nor Zarr: reports and records, with their digests in the manifest.

They have no effect on training. ``check`` compares them all the same, because users cite reports.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrmfast.atomic import sweep_partials
from mrmfast.formats.checksums import file_sha256
from mrmfast.formats.manifest import NAME, read_manifest, updating

REPORTS = "reports"
RECORD = "images/preprocess.json"  # the arguments that the images were made with
CLOCKS = 2.0  # seconds; the clock of a file server may be late


def record_names(dataset: Path) -> list[str]:
    """Return the paths of the reports and records of a dataset, relative to it; hidden files are no reports."""
    reports = [path for path in (dataset / REPORTS).rglob("*") if path.is_file() and not path.name.startswith(".")]
    names = [path.relative_to(dataset).as_posix() for path in reports]
    return sorted([*names, *([RECORD] if (dataset / RECORD).is_file() else [])])


@contextmanager
def recording(dataset: Path) -> Iterator[None]:
    """Enter the reports and records that the block writes into the manifest, if there is a manifest.

    Digests of files that are older than the block stay: damage must not be taken for a new version. What killed
    commands left beside them is removed first.
    """
    for folder in (dataset, dataset / REPORTS, dataset / RECORD.partition("/")[0]):
        sweep_partials(folder)
    since = time.time() - CLOCKS
    try:
        yield
    except BaseException:
        with suppress(Exception):  # the block's own error counts
            _record(dataset, since)
        raise
    _record(dataset, since)


def _record(dataset: Path, since: float) -> None:
    if not (dataset / NAME).exists():
        return
    before = read_manifest(dataset).files
    files = dict(before or {})
    for name in record_names(dataset):
        if name not in files or (dataset / name).stat().st_mtime >= since:
            files[name] = file_sha256(dataset / name)
    if files != before:
        with updating(dataset) as manifest:
            manifest.files = files
