"""Files of a node that its ranks share: named by their SHA-256, downloaded once, evicted when nobody uses them.

Every promise is a ``flock``, which the kernel drops when a process dies, however it dies:

- ``<sha256>.tar`` is whole. Who reads it holds a shared lock on it; eviction takes an exclusive one without waiting, or
  leaves the file alone.
- ``<sha256>.partial`` is being downloaded by whoever holds its exclusive lock. Behind the bytes lies one byte per block
  that says whether the block was written, so that the next process goes on where a killed one stopped.

Nothing is flushed to disk: that would bind downloads to the disk's speed. A file from before this boot of the machine
may have lost pages, so it is hashed once more before it is used.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrmfast.formats.checksums import file_sha256

BLOCK = 1 << 20  # bytes; what a killed process loses at most per request
POLL = 0.02  # seconds between looks at another's lock
_BOOTED = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class FullError(OSError):
    """Everything in the cache is in use, and one file more would exceed its size."""


class Pin:
    """A whole file that can't be evicted until :meth:`close`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._file = os.fdopen(descriptor, "rb", buffering=0)  # a file object: closed when collected, too

    def close(self) -> None:
        """Allow eviction; memory maps of the file stay valid."""
        self._file.close()


class Partial:
    """A file being downloaded; this process holds its lock.

    Parameters
    ----------
    path : Path
    descriptor : int
        Open for writing, exclusively locked.
    size : int
        Bytes of the whole file.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path, self.size, self._fd = path, size, descriptor
        self._blocks = -(-size // BLOCK)
        self._hash, self._hashed = hashlib.sha256(), 0

    def restart(self) -> None:
        """Begin anew: the bytes were wrong."""
        self.allocate()
        self._hash, self._hashed = hashlib.sha256(), 0

    @property
    def allocated(self) -> bool:
        """Whether the file was laid out before (by a process that didn't finish)."""
        return os.fstat(self._fd).st_size == self.size + self._blocks

    def allocate(self) -> None:
        """Lay the file out; fails here, not halfway, where the disk is full. Also twice as fast as growing it."""
        os.ftruncate(self._fd, 0)
        os.posix_fallocate(self._fd, 0, self.size + self._blocks)

    def missing(self, longest: int) -> list[tuple[int, int]]:
        """Return what has to be fetched, as (start, stop) in bytes, none longer than `longest`."""
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
        """Write bytes of a run that began at a block's edge and goes on without gaps; one thread per run."""
        view, at = memoryview(chunk), position
        while view:
            count = os.pwrite(self._fd, view, at)
            view, at = view[count:], at + count
        # Hashed while warm in the CPU's cache where bytes come in order; only one thread can stand at the frontier.
        if position == self._hashed:
            self._hash.update(chunk)
            self._hashed = at
        first, last = position // BLOCK, self._blocks if at == self.size else at // BLOCK
        if last > first:
            os.pwrite(self._fd, b"\1" * (last - first), self.size + first)

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file in hex."""
        while self._hashed < self.size:
            chunk = os.pread(self._fd, min(BLOCK, self.size - self._hashed), self._hashed)
            self._hash.update(chunk)
            self._hashed += len(chunk)
        return self._hash.hexdigest()

    def finish(self, final: Path) -> Pin | None:
        """Give the file its final name and keep it in use; None where an eviction came in between."""
        os.ftruncate(self._fd, self.size)
        os.utime(self._fd)  # checked at this moment, whatever a resumed download's blocks are dated
        os.replace(self.path, final)
        fcntl.flock(self._fd, fcntl.LOCK_SH)  # lets go of the exclusive lock first, for a moment
        return Pin(final, os.dup(self._fd)) if _is(self._fd, final) else None

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the file for whoever comes next."""
        os.close(self._fd)


class NodeCache:
    """The cache folder.

    Parameters
    ----------
    folder : Path
    limit : int, optional
        Bytes that downloaded files may take, all processes together.
    verify : bool
        Hash a cached file before its first use by a process, whatever its age.
    closing : Event
        Set: stop waiting for other processes.
    evicted : callable
        Called after each eviction.
    """

    def __init__(
        self,
        folder: Path,
        limit: int | None,
        verify: bool,
        closing: threading.Event,
        evicted: Callable[[], object] = lambda: None,
    ) -> None:
        self.folder, self.limit, self.verify, self.closing = folder, limit, verify, closing
        self.evicted = evicted
        self._sweeping = threading.Lock()
        self._unswept: int | None = None  # bytes added since the folder was looked through; None: never

    def find(self, sha256: str, size: int) -> Pin | None:
        """Return the file, in use from now on; None where it's absent or was damaged."""
        path = self.final(sha256)
        while not self.closing.is_set():
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            pin = Pin(path, descriptor)
            if not _lock(descriptor, fcntl.LOCK_SH) or not _is(descriptor, path):
                pin.close()  # just being finished, or evicted
                self.closing.wait(POLL)
                continue
            state = os.fstat(descriptor)
            suspect = self.verify or state.st_mtime <= _BOOTED
            if state.st_size != size or (suspect and file_sha256(path) != sha256):
                path.unlink(missing_ok=True)  # who maps it keeps what it has
                pin.close()
                return None
            # Last use, told outright: most file systems don't note reads at once. The other time: last checked.
            os.utime(path, ns=(time.time_ns(), time.time_ns() if suspect else state.st_mtime_ns))
            return pin
        return None

    @contextmanager
    def claim(self, sha256: str, size: int) -> Iterator[Pin | Partial]:
        """Yield the file, or the sole right to download it; waits while another process or thread does.

        Raises
        ------
        FullError
            No room below the limit, now.
        InterruptedError
            `closing` was set.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{sha256}.partial"
        while not self.closing.is_set():
            pin = self.find(sha256, size)
            if pin is not None:
                yield pin
                return
            partial = Partial(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), size)
            try:
                if not _lock(partial._fd, fcntl.LOCK_EX):
                    self.closing.wait(POLL)
                elif _is(partial._fd, path):  # else: finished or evicted since it was opened
                    if not partial.allocated:
                        self._allocate(partial)
                    yield partial
                    return
            finally:
                partial.close()
        raise InterruptedError

    def final(self, sha256: str) -> Path:
        """Return where a whole file lies."""
        return self.folder / f"{sha256}.tar"

    def _allocate(self, partial: Partial) -> None:
        try:
            if self.limit is None:
                partial.allocate()
                return
            # One at a time, or two would take the last room both: threads here, processes by a lock of the folder.
            with self._sweeping, open(self.folder / ".sweep.lock", "w") as lock:
                while not _lock(lock.fileno(), fcntl.LOCK_EX):
                    if self.closing.wait(POLL):
                        raise InterruptedError
                self._make_room(partial.size, self.limit)
                partial.allocate()
        except OSError:
            partial.discard()
            raise

    def _make_room(self, size: int, limit: int) -> None:
        """Evict what was used longest ago until `size` bytes more stay within the limit."""
        # Looking through a hundred thousand files for each would cost more than its download: with a limit of many
        # files, look after every hundredth of it, and leave room for eight processes that do the same.
        step = limit // 100
        if size < step and self._unswept is not None and self._unswept + size < step:
            self._unswept += size
            return
        self._unswept = None  # whoever is refused below, and whoever comes then, looks again
        room = limit - size - (8 * step if size < step else 0)
        entries = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith((".tar", ".partial")) and entry.is_file():
                with suppress(FileNotFoundError):
                    state = entry.stat()
                    # No Path: it interns its parts, and Python's table of forgotten names grows by megabytes.
                    entries.append((state.st_atime_ns, state.st_size, entry.path))
        total = sum(taken for _, taken, _ in entries)
        for _, taken, path in sorted(entries):
            if total <= room:
                break
            if _remove_unused(path):
                total -= taken
                self.evicted()
        if total > limit - size:
            raise FullError(errno.EDQUOT, "cache limit", str(self.folder))
        if total <= room:
            self._unswept = size


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(descriptor: int, path: Path | str) -> bool:
    """Tell whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_unused(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        free = _lock(descriptor, fcntl.LOCK_EX) and _is(descriptor, path)
        if free:
            os.unlink(path)
        return free
    finally:
        os.close(descriptor)
