"""What this node has verified since its last boot, so that bytes are hashed once and not by every rank and start.

A stamp binds the result to the state of the files (device, inode, size, times) and to the boot: a file that is written
to or replaced is verified again, and so is every file after a boot, when pages may have been lost.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

from mrmfast.storage.file_lock import EXCLUSIVE, still_names, try_lock

POLL = 0.02  # seconds between attempts to take a lock
SECONDS = 2**30  # range of the marks: dates of the years 1970 to 2004, which no write gives a file


@functools.cache
def boot_id() -> str:
    """Return what changes at each boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def state_of(paths: Iterable[Path]) -> str:
    """Return a text that changes when one of the files is written to, replaced or removed."""
    states = []
    for path in paths:
        status = path.stat()
        times = status.st_mtime_ns, status.st_ctime_ns
        states.append(f"{path.name} {status.st_dev} {status.st_ino} {status.st_size} {times}")
    return "\n".join(states)


def verified_time(sha256: str) -> int:
    """Return the modification time, ns, that marks a cached file as verified since this boot.

    For files that belong to the cache alone: the mark needs no second file, and any write to the file removes it.
    """
    digest = hashlib.sha256(f"{boot_id()}:{sha256}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % SECONDS * 10**9


class Stamp:
    """A small file with what was verified; locked while it is open, so that processes take turns.

    Parameters
    ----------
    path : Path
        Created where it does not exist, with its folder.
    closing : Event, optional
        If set, the wait for the lock ends.

    Raises
    ------
    OSError
        The file cannot be written.
    InterruptedError
        `closing` was set.
    """

    def __init__(self, path: Path, closing: threading.Event | None = None) -> None:
        self.path, self._closing = path, closing or threading.Event()

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                while not try_lock(self._fd, EXCLUSIVE):
                    if self._closing.wait(POLL):
                        raise InterruptedError
                if still_names(self.path, self._fd):
                    return self
            except BaseException:
                os.close(self._fd)
                raise
            os.close(self._fd)

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def matches(self, state: str) -> bool:
        """Return whether the files were verified in this state since the last boot."""
        return os.pread(self._fd, 100, 0) == _content(state)

    def write(self, state: str) -> None:
        """Record that the files in this state are verified. A write that fails or is cut short matches nothing."""
        with suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, _content(state), 0)


def _content(state: str) -> bytes:
    return hashlib.sha256(f"{boot_id()}\n{state}".encode()).hexdigest().encode()
