"""Fetching compared with a plain download, and the whole loader compared with its speed from disk; clients and peers.

``python -m benchmarks.object_store [--shards 192] [--tiles 49152] [--peers-python PYTHON] [--json FILE]``

nginx on loopback as an anonymous bucket, over near, far and narrow links. Fetching: shards of 1,000 samples of 12 KB,
an empty cache each time, no decoding. "Raw" is the least that a download can be: the same number of connections, one
plain GET per shard, written to a file without a check. Ours also checks SHA-256. Where server and client share two
cores, the hash alone takes two thirds of the time of the download, so a raw download with the hash is the second peer.
Also measured: curl and wget (one process per connection) and raw to memory.
The whole loader: :mod:`benchmarks.object_store.whole_loader`. Ratios within one run, medians of repeats that take
turns. Other loaders: :mod:`benchmarks.object_store.compare`, in the same run, each with its repeats in a row.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench
from benchmarks.harness.servers import Nginx, link, nginx
from benchmarks.harness.turns import Call, Turns
from benchmarks.object_store import dataset
from benchmarks.object_store.compare import compare
from benchmarks.object_store.raw_download import raw
from benchmarks.object_store.whole_loader import DELAYS, at, whole
from mrmfast.formats.manifest import Manifest, Shard
from mrmfast.meters import Meters
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.object_store import ObjectStore
from mrmfast.storage.source import DatasetSource

SAMPLES, SIZE = 1_000, 12_000
CONFIG = FetchConfig()
RATE = 150e6  # bytes a second of the narrow link
PROGRAMS = (["curl", "--silent", "--fail", "--remote-name-all"], ["wget", "--quiet"])


def options(url: str) -> dict[str, object]:
    """Return the client's settings of an anonymous bucket at `url`."""
    return {"anon": True, "endpoint": url, "region": "us-east-1"}


def programs(command: list[str], url: str, manifest: Manifest, folder: Path) -> None:
    """Download with as many processes of a program as connections, each some of the shards."""
    urls = [f"{url}/bucket/{shard.path}" for shard in manifest.shards]
    parts = [urls[i :: CONFIG.requests] for i in range(CONFIG.requests)]
    running = [subprocess.Popen([*command, *part], cwd=folder) for part in parts if part]
    assert not any([process.wait() for process in running])
    assert len(list(folder.iterdir())) == len(manifest.shards)


def fetched(url: str, manifest: Manifest, folder: Path, meters: Meters) -> list[Path]:
    """Fetch through the cache."""
    with DatasetSource("s3://bucket", str(folder), options(url), CONFIG, meters) as source:
        source.prefetch(manifest.shards)
        return [source.local(shard) for shard in manifest.shards]


def ours(url: str, manifest: Manifest, folder: Path) -> None:
    """Fetch through the cache."""
    fetched(url, manifest, folder, Meters())


def client(url: str, manifest: Manifest) -> None:
    """Stream through memory with obstore alone, as the loader does."""
    store = ObjectStore("s3://bucket", options(url), CONFIG.stall)

    def size(shard: Shard) -> int:
        return sum(map(len, store.stream(shard.path, 0, shard.bytes, shard.bytes)))

    with ThreadPoolExecutor(CONFIG.requests) as pool:
        for shard, length in zip(manifest.shards, pool.map(size, manifest.shards), strict=True):
            assert length == shard.bytes


def fsspec_client(url: str, manifest: Manifest) -> None:
    """Fetch to memory through obstore's fsspec interface."""
    from obstore.fsspec import FsspecStore

    _in_turns(
        FsspecStore(
            "s3",
            config={"endpoint": url, "region": "us-east-1", "skip_signature": True},
            client_options={"allow_http": True},
        ),
        manifest,
    )


def s3fs_client(url: str, manifest: Manifest) -> None:
    """Fetch to memory with s3fs alone."""
    import s3fs

    _in_turns(s3fs.S3FileSystem(anon=True, endpoint_url=url, max_concurrency=CONFIG.requests), manifest)


def _in_turns(store: Any, manifest: Manifest) -> None:
    # A few shards at a time, because one call would hold all of them in memory.
    for start in range(0, len(manifest.shards), CONFIG.requests):
        some = manifest.shards[start : start + CONFIG.requests]
        contents = store.cat([f"bucket/{shard.path}" for shard in some], batch_size=CONFIG.requests)
        assert [len(contents[f"bucket/{shard.path}"]) for shard in some] == [shard.bytes for shard in some]


def speeds(bench: Bench, turns: Turns, names: tuple[str, ...], total: int, suffix: str = "") -> None:
    """Record MB/s."""
    for name in names:
        bench.figure(name + suffix, total / turns.median(name) / 1e6, "MB/s")


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=192)
    parser.add_argument("--tiles", type=int, default=49_152, help="images of the whole loader's dataset")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--peers-python", default=sys.executable, help="interpreter with the peers extra (default: this one)"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        os.environ.pop(name, None)
    bench = Bench("object store: fetching and the whole loader, cold", arguments.json)
    with tempfile.TemporaryDirectory() as folder, nginx(Path(folder)) as server:
        work = Path(folder)
        manifest, _ = dataset.write(work / "bucket", arguments.shards, SAMPLES, SIZE)
        gate(bench, server, manifest, work)
        near(bench, server.url, manifest, work, arguments.repeats)
        far(bench, server.port, manifest, work, arguments.repeats)
        narrow(bench, server.port, Manifest(shards=manifest.shards[: max(1, arguments.shards // 8)]), work)
        os.environ["AWS_ENDPOINT_URL"] = server.url
        whole(bench, server, work, arguments.tiles, arguments.repeats)
        compare(bench, server, work, arguments.peers_python, min(3, arguments.repeats))
    return bench.finish()


def gate(bench: Bench, server: Nginx, manifest: Manifest, work: Path) -> None:
    """Compare the fetched bytes with the server's, and the number of requests with the server's log."""
    before, meters = server.requests(), Meters()
    paths = fetched(server.url, manifest, work / "gate", meters)
    same = all(
        path.read_bytes() == (work / "bucket" / shard.path).read_bytes()
        for path, shard in zip(paths, manifest.shards, strict=True)
    )
    bench.gate("fetched bytes equal the server's", same)
    requests = server.requests() - before
    bench.gate("the server saw the requests that the meters count", requests == meters.counts["requests"])
    bench.bar("requests per 20 samples", 20 * meters.counts["requests"] / manifest.samples, "<=", 1)
    shutil.rmtree(work / "gate")


def near(bench: Bench, url: str, manifest: Manifest, work: Path, repeats: int) -> None:
    """Fetch without a delay: ours, plain downloads, programs and clients, in turn."""
    calls: dict[str, Call] = {
        "raw to a file": lambda cold: raw(at(url), manifest, cold),
        "raw to memory": lambda _: raw(at(url), manifest, None),
        "raw to a file, checked": lambda cold: raw(at(url), manifest, cold, checked=True),
        "ours": lambda cold: ours(url, manifest, cold),
        **{
            f"{command[0]}, {CONFIG.requests} processes": partial(programs, command, url, manifest)
            for command in PROGRAMS
            if shutil.which(command[0])
        },
        "obstore to memory": lambda _: client(url, manifest),
        "obstore's fsspec interface to memory": lambda _: fsspec_client(url, manifest),
        "s3fs to memory": lambda _: s3fs_client(url, manifest),
    }
    turns = Turns(calls, work, repeats)
    speeds(bench, turns, tuple(calls), sum(shard.bytes for shard in manifest.shards))
    bench.bar("ours / raw to a file", turns.speed("ours", "raw to a file"), ">=", 0.85)
    bench.bar("ours / raw to a file, checked", turns.speed("ours", "raw to a file, checked"), ">=", 0.85)
    bench.figure("raw to a file, checked / raw to a file", turns.speed("raw to a file, checked", "raw to a file"), "")
    for name in ("raw to memory", *(name for name in calls if name.endswith("processes"))):
        bench.figure(f"ours / {name}", turns.speed("ours", name), "")
    bench.bar("obstore / s3fs, to memory", turns.speed("obstore to memory", "s3fs to memory"), ">=", 1)
    ratio = turns.speed("obstore to memory", "obstore's fsspec interface to memory")
    bench.bar("obstore / its fsspec interface, to memory", ratio, ">=", 1)


def far(bench: Bench, port: int, manifest: Manifest, work: Path, repeats: int) -> None:
    """Fetch over links of different delays, in turn."""
    total = sum(shard.bytes for shard in manifest.shards)
    with ExitStack() as stack:
        urls = {delay: stack.enter_context(link(port, delay)) for delay in (0.0, *DELAYS)}
        calls: dict[str, Call] = {}
        for delay, url in urls.items():
            calls[f"raw to a file, {delay * 1e3:g} ms"] = partial(raw, at(url), manifest)
            calls[f"ours, {delay * 1e3:g} ms"] = partial(ours, url, manifest)
        turns = Turns(calls, work, repeats)
    speeds(bench, turns, tuple(calls), total)
    for delay in DELAYS:
        name = f"ours, {delay * 1e3:g} ms"
        bench.bar(f"{name} / 0 ms", turns.speed(name, "ours, 0 ms"), ">=", 0.8)


def narrow(bench: Bench, port: int, manifest: Manifest, work: Path) -> None:
    """Fetch over a link slower than everything else, 20 ms away."""
    total = sum(shard.bytes for shard in manifest.shards)
    with link(port, DELAYS[0], RATE) as url:
        turns = Turns({"raw": partial(raw, at(url), manifest), "ours": partial(ours, url, manifest)}, work, 3)
    bench.bar(f"share of a link of {RATE / 1e6:g} MB/s", total / turns.median("ours") / RATE, ">=", 0.9)
    bench.figure("raw's share of that link", total / turns.median("raw") / RATE, "")


if __name__ == "__main__":
    sys.exit(main())
