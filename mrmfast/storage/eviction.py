"""Eviction: the least recently used files of a cache folder are removed to keep it below a limit."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrmfast.storage.file_lock import EXCLUSIVE, remove_if_unlocked, try_lock

POLL = 0.02  # seconds between attempts to take a lock
CACHED = (".tar", ".partial")
# Scanning a hundred thousand files before each download would cost more than the download: with a limit of many files
# the folder is scanned after every hundredth of the limit, with room for eight processes that do the same.
SCANS_PER_LIMIT, PROCESSES = 100, 8


class FullError(OSError):
    """Every file in the cache is in use, and another file would exceed the limit."""


class Evictor:
    """Keeps a folder below a limit; the processes that share the folder take turns.

    Parameters
    ----------
    folder : Path
    limit : int
        Maximum size of the cached files of all processes, bytes.
    closing : Event
        If set, waits for other processes end.
    evicted : callable
        Called after each eviction.
    """

    def __init__(self, folder: Path, limit: int, closing: threading.Event, evicted: Callable[[], object]) -> None:
        self.folder, self.limit, self.closing, self.evicted = folder, limit, closing, evicted
        self._thread_lock = threading.Lock()
        self._since_scan: int | None = None  # bytes added since the folder was scanned; None: scan next time

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Evict until a file of `size` bytes fits, and reserve the space while the block allocates the file.

        Raises
        ------
        FullError
            All files are in use.
        InterruptedError
            `closing` was set.
        """
        # One lock for the threads of this process, a file lock for other processes.
        with self._thread_lock, open(self.folder / ".sweep.lock", "w") as lock:
            while not try_lock(lock.fileno(), EXCLUSIVE):
                if self.closing.wait(POLL):
                    raise InterruptedError
            self._make_room(size)
            yield

    def _make_room(self, size: int) -> None:
        step = self.limit // SCANS_PER_LIMIT
        if size < step and self._since_scan is not None and self._since_scan + size < step:
            self._since_scan += size
            return
        self._since_scan = None  # after a refusal below, the next call scans again
        target = self.limit - size - (PROCESSES * step if size < step else 0)
        files = self._files()
        total = sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in sorted(files):
            if total <= target:
                break
            if remove_if_unlocked(path):
                total -= bytes_
                self.evicted()
        if total > self.limit - size:
            raise FullError(errno.EDQUOT, "cache limit", str(self.folder))
        if total <= target:
            self._since_scan = size

    def _files(self) -> list[tuple[int, int, str]]:
        """Return (time of last use, bytes, path) of every cached file."""
        files = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith(CACHED) and entry.is_file():
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    # No Path: it interns its parts, and Python's table of forgotten names grows by megabytes.
                    files.append((status.st_atime_ns, status.st_size, entry.path))
        return files
