"""Bytes of a dataset from a folder or an object store; complete shards through a checked cache of the node."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from mrmfast.cache import cache_folder
from mrmfast.errors import ClosedError, UserError
from mrmfast.formats import manifest as manifests
from mrmfast.formats.checksums import file_sha256
from mrmfast.formats.genetics import STORE
from mrmfast.formats.manifest import Manifest, Shard
from mrmfast.formats.sample_table import INDEX
from mrmfast.formats.splits import RELATIVES
from mrmfast.meters import Meters
from mrmfast.storage.client import Client
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.file_lock import Pin
from mrmfast.storage.local_folder import REMEDY, LocalFolder
from mrmfast.storage.node_cache import NodeCache
from mrmfast.storage.shard_fetch import ShardFetcher
from mrmfast.storage.stamp import Stamp, state_of
from mrmfast.storage.zarr_store import SealedStore

__all__ = ["DatasetSource", "FetchConfig"]

TRIES = 3  # reads of a manifest that is damaged
FIRST = 15.0  # seconds; limit of the manifest's request, since a wrong URL is more likely than a fault


class DatasetSource:
    """A dataset in a folder or an object store.

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
        Stage ``fetch`` (downloaded shards: samples, bytes, and the sum of their seconds), the client's counts
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
        self._fetcher = ShardFetcher(self._client, self._cache, self.config, self.meters, self._closing)
        # Not the client's pool: a large shard's download waits for its ranges there.
        self._pool = ThreadPoolExecutor(self.config.requests, thread_name_prefix="mrmfast-shard")
        self._files: Client | LocalFolder = (
            self._client if self.remote else LocalFolder(self._folder, self._pool, self._closing)
        )
        self._manifest_read = False
        self._verified: dict[str, str] = {}  # path of a local shard -> its state when it was hashed
        self._limit = limit
        self._pins: dict[str, Future[Path | Pin | None]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop downloading and release threads, connections and files; the cache keeps complete shards.

        Waits at most ``config.stall`` seconds for running requests to store their received bytes.
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
            The dataset does not exist, the manifest is damaged, or the bucket, credentials or connection are missing.
        """
        manifest = self._remote_manifest() if self.remote else self._local_manifest()
        if manifest.index_sha256:
            self._files.seals.trust(INDEX, manifest.index_sha256)
        for name, entry in manifest.genetics.items():
            self._files.seals.trust(f"{STORE}/{name}", entry["sha256"])
        self._manifest_read = True
        return manifest

    def _local_manifest(self) -> Manifest:
        path = self._folder / manifests.NAME
        if not path.exists():
            raise UserError(
                f"data.path={self.url}: no {manifests.NAME} there; "
                "make a dataset with python -m preprocess, or fix the path"
            )
        return manifests.read_manifest(self._folder)

    def _remote_manifest(self) -> Manifest:
        attempt = 0
        while True:
            text = self._client.read(manifests.NAME, deadline=min(FIRST, self.config.deadline))
            try:
                manifest = Manifest.from_json(text, f"{self.url}/{manifests.NAME}")
                break
            except UserError:  # the transfer may have damaged it
                self.meters.count("mismatches")
                attempt += 1
                if attempt == TRIES:
                    raise
        if manifest.splits.relatives:
            relatives = self._client.read(RELATIVES)
            manifest.splits = manifest.splits.with_relatives(relatives, f"{self.url}/{RELATIVES}")
        return manifest

    def local(self, shard: Shard) -> Path:
        """Return a local file with the shard's bytes, after a download if needed.

        The file stays in the cache until :meth:`release`.

        Parameters
        ----------
        shard : Shard
            Manifest entry: path, bytes and SHA-256.

        Raises
        ------
        UserError
            The file is missing, has the wrong length or checksum, cannot be downloaded, or does not fit into the cache.
        """
        finished = file = None
        try:
            while file is None:  # prefetched without a pin, or the cache was full at that time
                with self._lock:
                    future = self._pins.get(shard.path)
                    if future is None or future is finished:
                        future = self._begin(shard, ahead=False)
                finished, file = future, future.result()
        except BaseException:
            self.release(shard)  # the next call tries again
            raise
        return file.path if isinstance(file, Pin) else file

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Start to download shards for later calls of :meth:`local`; returns immediately.

        Without a limit of the cache, the shards are pinned until :meth:`release`. With a limit, :meth:`local` pins them
        and downloads shards that did not fit: a prefetched shard must not block a shard that the training waits for.
        """
        with self._lock:
            for shard in shards:
                # Beyond the limit, a prefetched shard would evict a shard that is not yet used.
                room = self._limit is None or (len(self._pins) + 1) * shard.bytes <= self._limit
                if room and shard.path not in self._pins:
                    self._begin(shard, ahead=True)

    def _begin(self, shard: Shard, ahead: bool) -> Future[Path | Pin | None]:
        future: Future[Path | Pin | None] = (
            self._pool.submit(self._fetcher.fetch, shard, ahead)
            if self.remote
            else self._pool.submit(self._check, shard)
        )
        self._pins[shard.path] = future
        return future

    def release(self, shard: Shard) -> None:
        """Allow the cache to evict a shard, after any number of calls of :meth:`local`; mapped memory stays valid."""
        with self._lock:
            future = self._pins.pop(shard.path, None)
        if future is not None:
            _unpin(future)

    def zarr_store(self) -> SealedStore:
        """Return the dataset's folder as a read-only Zarr store, whose files are compared with the manifest.

        Raises
        ------
        UserError
            :meth:`manifest`.
        """
        if not self._manifest_read:
            self.manifest()
        return SealedStore(self._files)

    @property
    def _folder(self) -> Path:
        return Path(self.url.removeprefix("file://"))

    def _check(self, shard: Shard) -> Path | Pin | None:
        path = self._folder / shard.path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise UserError(f"{path}: shard is missing; {REMEDY}") from None
        if size != shard.bytes:
            raise UserError(f"{path}: has {size} bytes, the manifest says {shard.bytes}; copy the dataset again")
        if self.config.verify_local:
            self._verify(path, shard)
        return path

    def _verify(self, path: Path, shard: Shard) -> None:
        """Hash a local shard, unless a process of this node has done so since the boot."""
        state = state_of([path])
        if self._verified.get(shard.path) == state:
            return
        name = hashlib.sha256(f"{path.absolute()}\n{shard.sha256}".encode()).hexdigest()
        with ExitStack() as stack:
            stamp = None
            try:
                stamp = stack.enter_context(Stamp(self._cache.folder / "verified" / name, self._closing))
            except InterruptedError:
                raise ClosedError(f"{self.url}: closed") from None
            except OSError:
                pass  # a cache that cannot be written: each rank hashes for itself
            if stamp is None or not stamp.matches(state):
                _compare(path, shard)
                if stamp is not None:
                    stamp.write(state)
        self._verified[shard.path] = state


def _compare(path: Path, shard: Shard) -> None:
    """Hash a local shard."""
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk") from error
    if digest != shard.sha256:
        raise UserError(
            f"{path}: damaged (SHA-256 differs from the manifest); {REMEDY}, or train on what can be read with "
            "data.fetch.verify_local=false"
        )


def _unpin(future: Future[Path | Pin | None]) -> None:
    """Close the file of a download, immediately or after the download."""

    def close(done: Future[Path | Pin | None]) -> None:
        if not done.cancelled() and done.exception() is None and isinstance(file := done.result(), Pin):
            file.close()

    future.cancel()
    future.add_done_callback(close)
