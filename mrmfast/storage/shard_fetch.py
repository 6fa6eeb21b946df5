"""Download of one shard into the node's cache: in one request, or, for a large shard, in concurrent range requests.

Bytes are written to their offsets in the file while they are hashed. A request that fails for a transient reason is
retried from the first missing byte (:mod:`.client`).
"""

from __future__ import annotations

import errno
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, wait

from mrmfast.errors import ClosedError, UserError
from mrmfast.formats.manifest import Shard
from mrmfast.meters import Meters
from mrmfast.storage.client import Client
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.eviction import FullError
from mrmfast.storage.file_lock import Pin
from mrmfast.storage.node_cache import NodeCache
from mrmfast.storage.partial_file import PartialFile

REQUEST = 16 << 20  # bytes; the largest range of one request
TRIES = 3  # downloads of a file whose SHA-256 is wrong
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


class ShardFetcher:
    """Downloads shards into a cache.

    Parameters
    ----------
    client : Client
    cache : NodeCache
    config : FetchConfig
    meters : Meters
    closing : Event
        If set, waits end.
    """

    def __init__(
        self, client: Client, cache: NodeCache, config: FetchConfig, meters: Meters, closing: threading.Event
    ) -> None:
        self._client, self._cache, self._config = client, cache, config
        self._meters, self._closing = meters, closing

    def fetch(self, shard: Shard, ahead: bool) -> Pin | None:
        """Return the shard, pinned, after a download if the cache lacks it.

        Parameters
        ----------
        shard : Shard
        ahead : bool
            The shard is prefetched. If the cache has a limit, the shard is not pinned and the result is None; also if
            the shard does not fit.

        Raises
        ------
        UserError
            The file is missing, has the wrong length or checksum, cannot be downloaded, or does not fit into the cache.
        ClosedError
            The source was closed during the call.
        """
        since = time.monotonic()
        try:
            while True:
                try:
                    with self._cache.claim(shard.sha256, shard.bytes) as held:
                        if isinstance(held, Pin):
                            self._meters.count("cache_hits")
                            pin: Pin | None = held
                        else:
                            with self._meters.time("fetch", shard.samples, shard.bytes):
                                pin = self._download(held, shard)
                        if pin is not None:
                            break
                except FullError:
                    if ahead:
                        return None
                    self._wait_for_room(shard, since)
        except InterruptedError:
            raise ClosedError(f"{self._client.url}: closed") from None
        except OSError as error:
            raise self._explain(error, shard) from error
        if ahead and self._config.cache_gb is not None:
            pin.close()
            return None
        return pin

    def _download(self, partial: PartialFile, shard: Shard) -> Pin | None:
        """Fetch the missing bytes of a shard, check the SHA-256, and rename the file."""
        for attempt in range(TRIES):
            ranges = partial.missing(REQUEST)
            if attempt == 0:
                self._meters.count("resumed_bytes", shard.bytes - sum(stop - start for start, stop in ranges))
            self._stream(ranges, partial, shard)
            if partial.sha256() == shard.sha256:
                return partial.finish(self._cache.complete_path(shard.sha256))
            self._meters.count("mismatches")
            partial.restart()
        partial.discard()
        raise UserError(
            f"{self._client.url}/{shard.path}: SHA-256 differs from the manifest, {TRIES} times; "
            "upload the dataset again"
        )

    def _stream(self, ranges: list[tuple[int, int]], partial: PartialFile, shard: Shard) -> None:
        """Fetch ranges of a shard concurrently."""
        if len(ranges) == 1:
            self._client.stream(shard.path, *ranges[0], shard.bytes, partial.write)
            return
        requests = [
            self._client.pool.submit(self._client.stream, shard.path, *range_, shard.bytes, partial.write)
            for range_ in ranges
        ]
        _, waiting = wait(requests, return_when=FIRST_EXCEPTION)
        for request in waiting:
            request.cancel()
        wait(waiting)  # no thread writes after this function raises
        for request in requests:
            request.result()

    def _wait_for_room(self, shard: Shard, since: float) -> None:
        """Wait until another reader releases a shard, up to the deadline: the other may wait for this process."""
        limit = f"data.fetch.cache_gb={self._config.cache_gb}"
        if shard.bytes > (self._config.cache_gb or 0) * 1e9:
            raise UserError(f"{limit}: {shard.path} alone has {shard.bytes / 1e9:.3g} GB; raise the limit")
        if time.monotonic() - since > self._config.deadline:
            raise UserError(
                f"{limit}: {self._cache.folder} is full of shards in use; raise it, or lower data.shuffle_window"
            )
        if self._closing.wait(0.1):
            raise ClosedError(f"{self._client.url}: closed")

    def _explain(self, error: OSError, shard: Shard) -> Exception:
        """Turn an error of the cache folder into one line with a remedy; return other errors unchanged."""
        folder = self._cache.folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(
                f"{folder}: no space left for {shard.bytes} bytes; free space, set data.fetch.cache_gb, or data.cache"
            )
        if error.errno in UNWRITABLE:
            return UserError(f"{folder}: cannot be written; set data.cache to a folder of this machine")
        return error
