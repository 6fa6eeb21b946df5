"""The cache of a node, shared by its ranks: files named by their SHA-256, downloaded once, evicted when unused.

States of a file, and what moves it from one to the next::

    absent --claim()--> downloading --finish()--> complete, pinned --Pin.close()--> complete, unused
      ^                  |   |  ^                      ^                               |    |
      |                  |   |  |                      +------- find(), claim() -------+    |
      |<-- discard() ----+   |  +-- claim() by the next process                             |
      |                      v      (resumes)                                               |
      |                 interrupted: its process died or closed                             |
      |                      |                                                              |
      +<---- eviction -------+<------------- eviction, or find() sees damage ---------------+

- *downloading*: ``<sha256>.partial``, exclusively locked by one process (:mod:`.partial_file`).
- *interrupted*: the same file without a lock; its map of blocks lists the complete blocks.
- *complete, pinned*: ``<sha256>.tar`` with at least one shared lock (:class:`.file_lock.Pin`).
- *complete, unused*: the same file without a lock; the least recently used is evicted first (:mod:`.eviction`).

All states are kernel locks (``flock``). The kernel releases the locks of a process that dies, also after SIGKILL.
Downloads are not flushed to disk, because that would limit them to the disk's speed. A file from before the last boot
may therefore lack pages. The modification time of a file says that it was hashed since the boot
(:func:`.stamp.verified_time`). A file from before the boot, or one that anything else wrote to, has another time and is
hashed again before its use.

Examples
--------
Two ranks need the same shard. Rank 0 downloads it and is killed; rank 1 resumes the download::

    rank 0: claim()  -> PartialFile   <sha256>.partial, locked by rank 0; rank 1 waits in claim()
    rank 0: writes blocks 0 to 3, then SIGKILL: the kernel releases the lock
    rank 1: claim()  -> PartialFile   the same file with blocks 0 to 3; rank 1 downloads the others
    rank 1: finish() -> Pin           <sha256>.tar, shared lock: rank 1 maps the shard
    rank 0, restarted: claim() -> Pin the complete file, a second shared lock
    both:   Pin.close()               unused: the file may be evicted
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from mrmfast.formats.checksums import file_sha256
from mrmfast.storage.eviction import POLL, Evictor
from mrmfast.storage.file_lock import SHARED, Pin, still_names, try_lock
from mrmfast.storage.partial_file import PartialFile
from mrmfast.storage.stamp import verified_time


class NodeCache:
    """The cache folder.

    Parameters
    ----------
    folder : Path
    limit : int, optional
        Maximum size of all downloaded files of all processes, bytes.
    verify : bool
        Hash every cached file before its first use by a process.
    closing : Event
        If set, waits for other processes end.
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
        self.folder, self.verify, self.closing = folder, verify, closing
        self._evictor = None if limit is None else Evictor(folder, limit, closing, evicted)

    def complete_path(self, sha256: str) -> Path:
        """Return the path of a complete file."""
        return self.folder / f"{sha256}.tar"

    def find(self, sha256: str, size: int) -> Pin | None:
        """Return the file, pinned; None if it is absent or damaged. A damaged file is removed."""
        path = self.complete_path(sha256)
        while not self.closing.is_set():
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            pin = Pin(path, descriptor)
            if not try_lock(descriptor, SHARED) or not still_names(path, descriptor):
                pin.close()  # another process completes or evicts the file right now
                self.closing.wait(POLL)
                continue
            status = os.fstat(descriptor)
            mark = verified_time(sha256)
            suspect = self.verify or status.st_mtime_ns != mark
            if status.st_size != size or (suspect and file_sha256(path) != sha256):
                path.unlink(missing_ok=True)  # memory maps of the file stay valid
                pin.close()
                return None
            # Access time: last use; set explicitly, because most file systems delay it.
            os.utime(path, ns=(time.time_ns(), mark))
            return pin
        return None

    @contextmanager
    def claim(self, sha256: str, size: int) -> Iterator[Pin | PartialFile]:
        """Yield the complete file, or the exclusive right to download it; waits while another holder downloads.

        Raises
        ------
        FullError
            Files in use leave too little space below the limit.
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
            partial = PartialFile(path, size)
            try:
                if not partial.lock():
                    self.closing.wait(POLL)
                elif partial.current:
                    self._allocate(partial)
                    yield partial
                    return
            finally:
                partial.close()
        raise InterruptedError

    def _allocate(self, partial: PartialFile) -> None:
        """Allocate the file below the limit, unless an earlier process has allocated it."""
        if partial.allocated:
            return
        try:
            with self._evictor.room(partial.size) if self._evictor else nullcontext():
                partial.allocate()
        except OSError:
            partial.discard()
            raise
