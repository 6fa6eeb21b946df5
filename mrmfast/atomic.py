"""Files that appear whole or not at all: written aside, flushed to disk, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def fsync_directory(directory: Path) -> None:
    """Make renames inside `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def write_aside(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends without an error.

    Parameters
    ----------
    path : str or Path
        Where the finished file appears; its folder is created.
    mode : {"w", "wb"}
        Text (UTF-8) or bytes.

    Yields
    ------
    file object
        A temporary file in the same folder, removed if the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of the same name apart; the last rename wins, each file is whole.
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(aside, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def rename_directory(aside: Path, final: Path) -> None:
    """Move a finished folder into place after flushing every file in it."""
    for root, _, names in os.walk(aside):
        for name in names:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_directory(Path(root))
    final.parent.mkdir(parents=True, exist_ok=True)
    os.rename(aside, final)
    fsync_directory(final.parent)
