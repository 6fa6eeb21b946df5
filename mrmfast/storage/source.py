"""Bytes of a dataset from a folder or an object store, whole shards through a checked cache of the node.

A shard is fetched in one request, a large one in several at once, each streamed to its place in the file while it is
hashed. What fails for a passing reason is asked for again from the byte where it broke off.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Self

import zarr.abc.store
import zarr.storage

from mrmfast.cache import cache_folder
from mrmfast.errors import ClosedError, UserError
from mrmfast.formats import manifest as manifests
from mrmfast.formats.genetics import STORE
from mrmfast.formats.manifest import Manifest, Shard
from mrmfast.formats.sample_table import INDEX
from mrmfast.meters import Meters
from mrmfast.storage.client import Client, FetchConfig
from mrmfast.storage.node_cache import FullError, NodeCache, Partial, Pin
from mrmfast.storage.zarr_store import RemoteStore

__all__ = ["FetchConfig", "Source"]

REQUEST = 16 << 20  # bytes; the largest range of one request
TRIES = 3  # downloads of a file whose SHA-256 is wrong
FIRST = 15.0  # seconds; the manifest is asked for no longer than this, since a typing error is likelier than a fault
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class Source:
    """A dataset, wherever it is.

    Parameters
    ----------
    url : str
        Folder, or ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``https://host/prefix``.
    cache : str, optional
        Folder for downloaded shards: :func:`mrmfast.cache.cache_folder`. Shared by the ranks of a node.
    storage_options : dict, optional
        Settings of the object store's client (:class:`.object_store.ObjectStore`); ``{"anon": True}`` for a public
        bucket.
    config : FetchConfig, optional
    meters : Meters, optional
        Stage ``fetch`` (downloaded shards: samples, bytes, and the seconds of each added up), the client's counts
        (:class:`mrmfast.storage.client.Client`), ``cache_hits``, ``cache_evictions`` and ``resumed_bytes``.
    """

    def __init__(
        self,
        url: str,
        cache: str | None = None,
        storage_options: dict[str, Any] | None = None,
        config: FetchConfig | None = None,
        meters: Meters | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.remote = "://" in self.url and not self.url.startswith("file://")
        self.config, self.meters = config or FetchConfig(), meters or Meters()
        self._closing = threading.Event()
        self._client = Client(self.url, dict(storage_options or {}), self.config, self.meters, self._closing)
        limit = None if self.config.cache_gb is None else int(self.config.cache_gb * 1e9)
        self._cache = NodeCache(
            cache_folder(cache),
            limit,
            self.config.verify,
            self._closing,
            lambda: self.meters.count("cache_evictions"),
        )
        # Not the client's pool: a large shard's download waits for its ranges there.
        self._pool = ThreadPoolExecutor(self.config.requests, thread_name_prefix="mrmfast-shard")
        self._limit = limit
        self._pins: dict[str, Future[Path | Pin | None]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop downloading and let go of threads, connections and files; what was fetched stays for the next.

        Waits for requests under way to hand over what they have, at most ``config.stall`` seconds.
        """
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()
        with self._lock:
            pins, self._pins = list(self._pins.values()), {}
        for future in pins:
            _unpin(future)

    def manifest(self) -> Manifest:
        """Read ``dataset.json``.

        Raises
        ------
        UserError
            No dataset there, a changed manifest, no credentials, no such bucket, or no connection.
        """
        where = f"{self.url}/{manifests.NAME}"
        if not self.remote:
            path = self._folder / manifests.NAME
            if not path.exists():
                raise UserError(
                    f"data.path={self.url}: no {manifests.NAME} there; "
                    "make a dataset with python -m preprocess, or mend the path"
                )
            return Manifest.from_json(path.read_bytes(), str(path))
        for attempt in range(1, TRIES + 1):
            text = self._client.read(manifests.NAME, deadline=min(FIRST, self.config.deadline))
            try:
                manifest = Manifest.from_json(text, where)
                break
            except UserError:  # it may have been changed on its way
                self.meters.count("mismatches")
                if attempt == TRIES:
                    raise
        if manifest.index_sha256:
            self._client.trust(INDEX, manifest.index_sha256)
        for name, entry in manifest.genetics.items():
            self._client.trust(f"{STORE}/{name}", entry["sha256"])
        return manifest

    def local(self, shard: Shard) -> Path:
        """Return a local file with the shard's bytes, downloading it first where needed.

        It stays in the cache until :meth:`release`.

        Parameters
        ----------
        shard : Shard
            Manifest entry: path, bytes and SHA-256.

        Raises
        ------
        UserError
            The file is missing, has the wrong length, fails its checksum, doesn't come, or finds no room.
        """
        stale = found = None
        try:
            while found is None:  # fetched ahead, and not held; or there was no room then
                with self._lock:
                    future = self._pins.get(shard.path)
                    if future is None or future is stale:
                        future = self._begin(shard, ahead=False)
                stale, found = future, future.result()
        except BaseException:
            self.release(shard)  # asked for again, it is tried again
            raise
        return found.path if isinstance(found, Pin) else found

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Begin to download shards that :meth:`local` will be asked for; returns at once.

        Without a limit of the cache they count as in use until :meth:`release`. With one they don't before they are
        asked for, and those that find no room are left to :meth:`local`: what is only wanted later must never keep out
        what somebody waits for.
        """
        with self._lock:
            for shard in shards:
                # With more than the limit of one's own, fetching one ahead would evict another not yet used.
                room = self._limit is None or (len(self._pins) + 1) * shard.bytes <= self._limit
                if room and shard.path not in self._pins:
                    self._begin(shard, ahead=True)

    def _begin(self, shard: Shard, ahead: bool) -> Future[Path | Pin | None]:
        future: Future[Path | Pin | None] = (
            self._pool.submit(self._fetch, shard, ahead) if self.remote else self._pool.submit(self._check, shard)
        )
        self._pins[shard.path] = future
        return future

    def release(self, shard: Shard) -> None:
        """Allow the cache to evict a shard, however often it was asked for; mapped memory stays valid."""
        with self._lock:
            future = self._pins.pop(shard.path, None)
        if future is not None:
            _unpin(future)

    def zarr_store(self) -> zarr.abc.store.Store:
        """Return the dataset's folder as a read-only Zarr store; chunks come with the same client, retries, checks."""
        return RemoteStore(self._client) if self.remote else zarr.storage.LocalStore(self._folder, read_only=True)

    @property
    def _folder(self) -> Path:
        return Path(self.url.removeprefix("file://"))

    def _check(self, shard: Shard) -> Path | Pin | None:
        path = self._folder / shard.path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise UserError(
                f"{path}: shard is missing; copy the dataset again, or run its preprocessor again"
            ) from None
        if size != shard.bytes:
            raise UserError(f"{path}: has {size} bytes, the manifest says {shard.bytes}; copy the dataset again")
        return path

    def _fetch(self, shard: Shard, ahead: bool) -> Path | Pin | None:
        """Return the shard in use; None where it was fetched ahead and isn't held: see :meth:`prefetch`."""
        since = time.monotonic()
        try:
            while True:
                try:
                    with self._cache.claim(shard.sha256, shard.bytes) as found:
                        if isinstance(found, Pin):
                            self.meters.count("cache_hits")
                            pin: Pin | None = found
                        else:
                            with self.meters.time("fetch", shard.samples, shard.bytes):
                                pin = self._download(found, shard)
                        if pin is not None:
                            break
                except FullError:
                    if ahead:
                        return None
                    self._wait_for_room(shard, since)
        except InterruptedError:
            raise ClosedError(f"{self.url}: closed") from None
        except OSError as error:
            raise self._explain(error, shard) from error
        if ahead and self._limit is not None:
            pin.close()
            return None
        return pin

    def _download(self, partial: Partial, shard: Shard) -> Pin | None:
        """Fetch what a shard lacks, check it, and give it its name."""
        for attempt in range(TRIES):
            runs = partial.missing(REQUEST)
            if attempt == 0:
                self.meters.count("resumed_bytes", shard.bytes - sum(stop - start for start, stop in runs))
            if len(runs) == 1:
                self._client.stream(shard.path, *runs[0], shard.bytes, partial.write)
            else:
                work = [
                    self._client.pool.submit(self._client.stream, shard.path, *run, shard.bytes, partial.write)
                    for run in runs
                ]
                _, waiting = wait(work, return_when=FIRST_EXCEPTION)
                for future in waiting:
                    future.cancel()
                wait(waiting)  # nobody writes any more when an error leaves here
                for future in work:
                    future.result()
            if partial.sha256() == shard.sha256:
                return partial.finish(self._cache.final(shard.sha256))
            self.meters.count("mismatches")
            partial.restart()
        partial.discard()
        raise UserError(
            f"{self.url}/{shard.path}: SHA-256 differs from the manifest, {TRIES} times; upload the dataset again"
        )

    def _wait_for_room(self, shard: Shard, since: float) -> None:
        """Give others time to release what fills the cache; not for ever, since they may wait for us."""
        limit = f"data.fetch.cache_gb={self.config.cache_gb}"
        if shard.bytes > (self.config.cache_gb or 0) * 1e9:
            raise UserError(f"{limit}: {shard.path} alone has {shard.bytes / 1e9:.3g} GB; raise the limit")
        if time.monotonic() - since > self.config.deadline:
            raise UserError(
                f"{limit}: {self._cache.folder} is full of shards in use; raise it, or lower data.shuffle_window"
            )
        if self._closing.wait(0.1):
            raise ClosedError(f"{self.url}: closed")

    def _explain(self, error: OSError, shard: Shard) -> Exception:
        """Say in one line what is wrong with the cache folder."""
        folder = self._cache.folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(
                f"{folder}: no space left for {shard.bytes} bytes; free space, set data.fetch.cache_gb, or data.cache"
            )
        if error.errno in UNWRITABLE:
            return UserError(f"{folder}: cannot be written; set data.cache to a folder of this machine")
        return error


def _unpin(future: Future[Path | Pin | None]) -> None:
    """Close the file of a download, now or when it ends."""

    def close(done: Future[Path | Pin | None]) -> None:
        if not done.cancelled() and done.exception() is None and isinstance(found := done.result(), Pin):
            found.close()

    future.cancel()
    future.add_done_callback(close)
