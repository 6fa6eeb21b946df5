"""Files that appear complete or not at all: written aside, flushed to disk, renamed.

While ``NAME`` is written it is ``.NAME.partial`` in the same folder, under an exclusive lock (``flock``). The kernel
releases the lock of a killed process. So a partial file without a lock is the leftover of a killed process: the next
writer of ``NAME`` replaces it, and :func:`sweep_partials` removes it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

SUFFIX = ".partial"
OLD = 86_400.0  # seconds; a writer that has not written for so long is dead


def fsync_directory(directory: Path) -> None:
    """Make renames inside `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial_path(path: Path) -> Path:
    """Return the path at which `path` is written: ``.NAME.partial`` in the same folder."""
    return path.with_name(f".{path.name}{SUFFIX}")


@contextmanager
def write_aside(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces `path` when the block ends without an error.

    A second writer of the same path, in this process or another one, waits until the first one has finished.

    Parameters
    ----------
    path : str or Path
        Where the finished file appears; its folder is created.
    mode : {"w", "wb"}
        Text (UTF-8) or bytes.

    Yields
    ------
    file object
        The partial file, removed if the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    descriptor = _open_locked(partial)
    with open(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
        try:
            yield file
            file.flush()
            os.fsync(descriptor)
            # Renamed under the lock: a waiting writer then finds that its partial file is gone, and makes a new one.
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    fsync_directory(path.parent)


def commit_file(partial: Path, path: Path) -> None:
    """Flush a file that another library wrote at :func:`partial_path`, and rename it to `path`."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, path)
    fsync_directory(path.parent)


def sweep_partials(folder: Path, name: str = "*") -> int:
    """Remove the partial files of killed writers from a folder.

    Parameters
    ----------
    folder : Path
        Not searched recursively; it may be absent.
    name : str
        Pattern of the finished files' names, e.g. ``pgs*``.

    Returns
    -------
    int
        How many files were removed. A partial file that a living process holds stays. On a file system without locks
        every partial file of the last day stays: its writer may live on another host.
    """
    removed = 0
    for partial in folder.glob(f".{name}{SUFFIX}"):
        try:
            if not partial.is_file():
                continue
            descriptor = os.open(partial, os.O_RDWR)
        except OSError:  # another sweep was faster, or the file belongs to another user
            continue
        try:
            held = _lock(descriptor, wait=False)
            old = time.time() - os.fstat(descriptor).st_mtime > OLD
            if held is True or (held is None and old):
                partial.unlink(missing_ok=True)
                removed += 1
        finally:
            os.close(descriptor)
    return removed


def rename_directory(aside: Path, final: Path) -> None:
    """Move a finished folder to its place after flushing every file in it."""
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


def _open_locked(partial: Path) -> int:
    """Open an empty file and hold its lock; the descriptor of the file that stands at `partial` now."""
    while True:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        _lock(descriptor, wait=True)
        # The writer or the sweep that held the lock may have renamed or removed the file meanwhile.
        if _stands_at(descriptor, partial):
            os.ftruncate(descriptor, 0)
            return descriptor
        os.close(descriptor)


def _stands_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, wait: bool) -> bool | None:
    """Lock an open file; False if another open file holds the lock and `wait` is False.

    None on a file system without locks, such as some Lustre mounts: writers must then have names of their own.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
