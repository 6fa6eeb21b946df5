"""Requests to an object store: a bounded number at once, retried where a retry may help, counted."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mrmfast.errors import ClosedError
from mrmfast.formats import checksums
from mrmfast.meters import Meters
from mrmfast.storage import retry
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.object_store import ObjectEntry, ObjectStore, explain, is_panic, secretive
from mrmfast.storage.seals import Seals

if TYPE_CHECKING:
    from mrmfast.storage.object_store import ByteRange

T = TypeVar("T")


class Client:
    """Retried, bounded, counted requests below one URL. Connects at first use.

    Parameters
    ----------
    url : str
    options : dict
        :class:`mrmfast.storage.object_store.ObjectStore`.
    config : FetchConfig
    meters : Meters
        Counts ``requests``, ``retries``, ``mismatches`` (wrong length or SHA-256) and ``fetched_bytes``.
    closing : Event
        If set, requests end at the next chunk and are not retried.

    Attributes
    ----------
    pool : ThreadPoolExecutor
        Threads for the ranges of a large shard and for Zarr files.
    seals : Seals
        Complete files in sealed folders are compared with their digests.
    """

    def __init__(
        self, url: str, options: dict[str, Any], config: FetchConfig, meters: Meters, closing: threading.Event
    ) -> None:
        self.url, self.config, self.meters, self.closing = url, config, meters, closing
        self.pool = ThreadPoolExecutor(config.requests, thread_name_prefix="mrmfast-request")
        self._options = options
        self._store: ObjectStore | None = None
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(config.requests)
        self.seals = Seals(self._load)

    def close(self) -> None:
        """Let go of threads and connections; `closing` is set before."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            if self._store is not None:
                self._store.close()

    def read(self, path: str, part: ByteRange | None = None, deadline: float | None = None) -> bytes:
        """Return a small file, or a part of it.

        A complete file whose digest is known (``seals``) is checked.

        Raises
        ------
        UserError
            It doesn't come within `deadline` seconds (``config.deadline`` by default), or is wrong again and again.
        MissingError
            It isn't there.
        """
        digest = None if part else self.seals.digest(path)

        def attempt(store: ObjectStore, _: retry.Patience) -> bytes:
            data = store.read(path, part)
            self.meters.count("fetched_bytes", len(data))
            if digest and hashlib.sha256(data).hexdigest() != digest:
                raise retry.MismatchError(f"{self.url}/{path}: SHA-256 differs from the manifest")
            return data

        return self._call(path, attempt, deadline)

    def stream(self, path: str, start: int, stop: int, size: int, write: Callable[[int, bytes], object]) -> None:
        """Hand the bytes from `start` up to `stop` of a file of `size` bytes to ``write(position, chunk)``, in order.

        An attempt resumes where the attempt before broke off.

        Raises
        ------
        UserError
            No byte for ``config.deadline`` seconds, or the file has another size.
        """
        position = start

        def attempt(store: ObjectStore, patience: retry.Patience) -> None:
            nonlocal position
            before = position
            if position == stop:
                return  # all bytes had come when the connection broke
            try:
                # Closed outright: an error's traceback would keep the connection open until it is collected.
                with closing(store.stream(path, position, stop, size)) as chunks:
                    for chunk in chunks:
                        write(position, chunk)
                        position += len(chunk)
                        patience.progress()
                        if self.closing.is_set():
                            raise ClosedError(f"{self.url}: closed")
            finally:
                self.meters.count("fetched_bytes", position - before)

        self._call(path, attempt)

    def names(self, folder: str) -> list[str]:
        """Return the names directly below a folder, if the store can list (``https://`` cannot)."""
        return self._call(folder, lambda store, _: store.names(folder))

    def entry(self, path: str) -> ObjectEntry:
        """Describe a file.

        Raises
        ------
        MissingError
            It isn't there.
        """
        return self._call(path, lambda store, _: store.entry(path))

    def entries(self, folder: str = "") -> list[ObjectEntry]:
        """Describe the files directly below a folder."""
        return self._call(folder, lambda store, _: store.entries(folder))

    def put(self, path: str, source: Path) -> None:
        """Upload a local file."""
        self._call(path, lambda store, _: store.put(path, source))

    def _load(self, folder: str, _: str) -> dict[str, str]:
        name = f"{folder}/{checksums.NAME}"
        return checksums.parse_digests(self.read(name), f"{self.url}/{name}")

    def _call(self, path: str, attempt: Callable[[ObjectStore, retry.Patience], T], deadline: float | None = None) -> T:
        patience = retry.Patience(deadline or self.config.deadline, self.closing, self._note)

        def once() -> T:
            with self._slot(patience) as store:
                return attempt(store, patience)

        where = f"{self.url}/{path}".rstrip("/")
        try:
            return patience.call(once)
        except BaseException as error:
            if not (isinstance(error, Exception) or is_panic(error)):
                raise
            raise explain(error, where) from (None if secretive(error) else error)

    def _note(self, error: BaseException | None) -> None:
        self.meters.count("retries")
        if isinstance(error, retry.MismatchError):
            self.meters.count("mismatches")

    @contextmanager
    def _slot(self, patience: retry.Patience) -> Iterator[ObjectStore]:
        """Take a slot for a concurrent request; the wait does not count against the deadline."""
        since = time.monotonic()
        with self._slots:
            patience.extend(time.monotonic() - since)
            if self.closing.is_set():
                raise ClosedError(f"{self.url}: closed")
            with self._lock:
                if self._store is None:
                    self._store = ObjectStore(self.url, self._options, self.config.stall)
                store = self._store
            self.meters.count("requests")
            yield store
