"""Write aside, fsync, rename: a reader never sees half a file, and a file that exists is whole."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def aside(path: Path) -> Path:
    """Return the dot-name beside ``path`` under which it is written."""
    return path.with_name(f".{path.name}.tmp")


def settle(temporary: Path, path: Path) -> None:
    """Flush a finished temporary file to the disk and give it its name."""
    with temporary.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open ``path`` for writing bytes; it appears only if the block ends well."""
    temporary = aside(path)
    with temporary.open("wb") as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


@contextmanager
def writing_gzip(path: Path) -> Iterator[gzip.GzipFile]:
    """As :func:`writing`, compressed; no name and no time in the header, so equal content gives equal bytes."""
    with (
        writing(path) as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=4, mtime=0) as handle,
    ):
        yield handle


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys."""
    with writing(path) as handle:
        handle.write((json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_table(path: Path, columns: list[str], rows: Iterator[list[str]]) -> None:
    """Write a tab-separated table with a header line."""
    with writing(path) as handle:
        handle.write(("\t".join(columns) + "\n").encode())
        for row in rows:
            handle.write(("\t".join(row) + "\n").encode())
