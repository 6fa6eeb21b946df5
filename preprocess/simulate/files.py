"""Files of the simulated cohort, all through :mod:`mrmfast.atomic`: a file that exists is complete."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mrmfast.atomic import write_aside


@contextmanager
def write_gzip(path: Path) -> Iterator[gzip.GzipFile]:
    """Open a compressed file for bytes; no name and no time in the header, so equal content gives equal bytes."""
    with (
        write_aside(path, "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=4, mtime=0) as handle,
    ):
        yield handle


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys."""
    with write_aside(path, "wb") as handle:
        handle.write((json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_table(path: Path, columns: list[str], rows: Iterator[list[str]]) -> None:
    """Write a tab-separated table with a header line."""
    with write_aside(path, "wb") as handle:
        handle.write(("\t".join(columns) + "\n").encode())
        for row in rows:
            handle.write(("\t".join(row) + "\n").encode())
