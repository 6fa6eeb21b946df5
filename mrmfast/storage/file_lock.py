"""``flock`` on files that other processes may replace or remove; the kernel releases it when a process dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

SHARED, EXCLUSIVE = fcntl.LOCK_SH, fcntl.LOCK_EX


def try_lock(descriptor: int, kind: int) -> bool:
    """Take a lock on an open file; return False if another process or thread holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def still_names(path: Path | str, descriptor: int) -> bool:
    """Return whether `path` still names the open file: a lock on a removed file protects nothing."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def remove_if_unlocked(path: str) -> bool:
    """Remove an unlocked file; return whether it is removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        free = try_lock(descriptor, EXCLUSIVE) and still_names(path, descriptor)
        if free:
            os.unlink(path)
        return free
    finally:
        os.close(descriptor)


class Pin:
    """A complete cached file that cannot be evicted until :meth:`close`: it holds a shared lock."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._file = os.fdopen(descriptor, "rb", buffering=0)  # a file object: closed when collected, too

    def close(self) -> None:
        """Allow eviction; memory maps of the file stay valid."""
        self._file.close()
