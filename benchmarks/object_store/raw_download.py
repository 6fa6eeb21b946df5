"""The least that a download can be, for benchmarks of fetching: a connection a thread, a plain GET a shard."""

from __future__ import annotations

import hashlib
import http.client
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from mrmfast.formats.manifest import Manifest, Shard
from mrmfast.storage.config import FetchConfig

REQUESTS = FetchConfig().requests
CHUNK = 256 << 10


def raw(bucket: str, manifest: Manifest, folder: Path | None, checked: bool = False) -> None:
    """Download every shard, each in one GET, over as many connections as ours.

    Parameters
    ----------
    bucket : str
        URL that the shards' paths follow.
    manifest : Manifest
    folder : Path, optional
        Where files are written; none are by default.
    checked : bool
        Hash what is written, and compare it with the manifest's SHA-256.
    """
    where = urlsplit(bucket)

    def some(shards: list[Shard]) -> None:
        connection = http.client.HTTPConnection(str(where.hostname), where.port)
        buffer = memoryview(bytearray(CHUNK))
        for shard in shards:
            connection.request("GET", f"{where.path}/{shard.path}")
            answer = connection.getresponse()
            if folder is None:
                while answer.readinto(buffer):
                    pass
                continue
            digest = hashlib.sha256()
            with open(folder / Path(shard.path).name, "wb", buffering=0) as file:
                while count := answer.readinto(buffer):
                    file.write(buffer[:count])
                    if checked:
                        digest.update(buffer[:count])
            assert not checked or digest.hexdigest() == shard.sha256
        connection.close()

    if folder is not None:
        folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(some, [manifest.shards[i::REQUESTS] for i in range(REQUESTS)]))
