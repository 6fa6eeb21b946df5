"""A file that is being downloaded, in blocks, by several requests at once; a killed download is resumed.

Layout on disk: the bytes of the file, then one byte per block that records whether the block was written.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from pathlib import Path

from mrmfast.arithmetic import ceil_div
from mrmfast.storage.file_lock import EXCLUSIVE, SHARED, Pin, still_names, try_lock
from mrmfast.storage.stamp import verified_time

BLOCK = 1 << 20  # bytes; maximum loss of a killed process per request


class PartialFile:
    """A file that is being downloaded; after :meth:`lock`, by this process only.

    Parameters
    ----------
    path : Path
        Created where it does not exist.
    size : int
        Bytes of the complete file.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._blocks = ceil_div(size, BLOCK)
        self._hash, self._hashed = hashlib.sha256(), 0

    def lock(self) -> bool:
        """Take the exclusive right to download; False while another process or thread has it."""
        return try_lock(self._fd, EXCLUSIVE)

    @property
    def current(self) -> bool:
        """Whether the path still names this file: another process may have completed or evicted it."""
        return still_names(self.path, self._fd)

    @property
    def allocated(self) -> bool:
        """Whether the file is allocated (by a process that did not complete it)."""
        return os.fstat(self._fd).st_size == self.size + self._blocks

    def allocate(self) -> None:
        """Allocate the file: a full disk raises before the download. Twice as fast as growing the file."""
        os.ftruncate(self._fd, 0)
        os.posix_fallocate(self._fd, 0, self.size + self._blocks)

    def restart(self) -> None:
        """Discard all bytes, because their SHA-256 is wrong."""
        self.allocate()
        self._hash, self._hashed = hashlib.sha256(), 0

    def missing(self, longest: int) -> list[tuple[int, int]]:
        """Return the missing byte ranges (start, stop), each at most `longest` bytes."""
        runs: list[tuple[int, int]] = []
        for block, done in enumerate(os.pread(self._fd, self._blocks, self.size)):
            start, stop = block * BLOCK, min((block + 1) * BLOCK, self.size)
            if done:
                continue
            if runs and runs[-1][1] == start and stop - runs[-1][0] <= longest:
                runs[-1] = (runs[-1][0], stop)
            else:
                runs.append((start, stop))
        return runs

    def write(self, position: int, chunk: bytes) -> None:
        """Write bytes of a range that starts at a block's edge, without gaps; one thread per range."""
        view, end = memoryview(chunk), position
        while view:
            count = os.pwrite(self._fd, view, end)
            view, end = view[count:], end + count
        # In-order bytes are hashed while they are in the CPU's cache. Only one thread can write at the hashed position.
        if position == self._hashed:
            self._hash.update(chunk)
            self._hashed = end
        first, last = position // BLOCK, self._blocks if end == self.size else end // BLOCK
        if last > first:
            os.pwrite(self._fd, b"\1" * (last - first), self.size + first)

    def sha256(self) -> str:
        """Return the SHA-256 of the complete file in hex."""
        while self._hashed < self.size:
            chunk = os.pread(self._fd, min(BLOCK, self.size - self._hashed), self._hashed)
            self._hash.update(chunk)
            self._hashed += len(chunk)
        return self._hash.hexdigest()

    def finish(self, final: Path) -> Pin | None:
        """Give the hashed file its final name and pin it; None if another process evicted it in between."""
        os.ftruncate(self._fd, self.size)
        os.utime(self._fd, ns=(time.time_ns(), verified_time(self.sha256())))
        os.replace(self.path, final)
        fcntl.flock(self._fd, SHARED)  # not atomic: the kernel releases the exclusive lock first
        return Pin(final, os.dup(self._fd)) if still_names(final, self._fd) else None

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, which another process may then lock."""
        os.close(self._fd)
