"""The whole loader from an object store, for benchmarks.object_store: cold, near, far and over a narrow link.

Tiles of 224 px (simulated: noise of low frequency, JPEG of about 11 KB), with 26,909 genetic features a participant;
decoded, rotated, flipped and joined, in batches of 64. Shards hold an eighth of what the preprocessors write into one:
each of the 64 subsequences of the order then reads six shards of this small dataset, as it reads many of a large one.
The dataset is opened first (its genetics are then packed in the cache); timed is an epoch from the first batch asked
for, with no shard in the cache. Store and disk differ by a few percent, less than two epochs of the same kind here do:
they take more turns than the rest.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.genetics.dataset import ENCODINGS, values, write_store
from benchmarks.harness import Bench
from benchmarks.harness.servers import Nginx, link
from benchmarks.harness.turns import Call, Turns
from benchmarks.object_store.raw_download import raw
from mrmfast.arithmetic import ceil_div
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.genetics.store import pack_rows
from mrmfast.data.images.backend import Pixels
from mrmfast.data.loader import Loader
from mrmfast.formats.image_shards import Sample, finalise_images, write_shard
from mrmfast.formats.manifest import Manifest, SplitRule, claim_splits, read_manifest

SIZE, QUALITY, DISTINCT = 224, 90, 512
BATCH, PER_SHARD = 64, 128
CLOSE = 20  # turns of store and disk
DELAYS = (0.02, 0.1)  # seconds a round trip


def jpegs(count: int, seed: int = 0) -> list[bytes]:
    """Return simulated tiles of about 10 KB each."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(min(count, DISTINCT)):
        tile = cv2.resize(generator.integers(0, 256, (28, 28, 3), dtype=np.uint8), (SIZE, SIZE))
        tile = tile // 2 + generator.integers(0, 5, tile.shape, dtype=np.uint8)
        made.append(cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
    return [made[number % len(made)] for number in range(count)]


def write(folder: Path, count: int, per_shard: int, genetics: bool) -> None:
    """Write the dataset with the project's own writers, two tiles a participant."""
    claim_splits(folder, SplitRule(0, 0.0))
    samples = [
        Sample(f"{number:09d}", jpeg, str(1_000_000 + 7 * (number // 2)), {})
        for number, jpeg in enumerate(jpegs(count))
    ]
    parts = [
        write_shard(folder, shard, samples[start : start + per_shard])
        for shard, start in enumerate(range(0, count, per_shard))
    ]
    finalise_images(folder, parts, image_size=SIZE, schema={"jpg": "RGB"}, statistics={})
    if genetics:
        participants = ceil_div(count, 2)
        drawn = values(participants, 0)
        write_store(folder, {name: pack_rows(kind, drawn[name]) for name, kind in ENCODINGS.items()}, participants)


def open_loader(path: str, cache: Path, pixels: Pixels = "uint8") -> Loader:
    """Open a dataset with the settings of all measurements."""
    config = DataConfig(
        path, cache=str(cache), image_size=SIZE, shuffle_window=1, anonymous=True, backend="cpu", pixels=pixels
    )
    cpu = torch.device("cpu")
    return Loader(open_dataset(config), config, seed=0, batch=BATCH, micro_batch=BATCH, rank=0, world=1, device=cpu)


def epoch(path: str, cache: Path, alongside: Callable[[], object] = lambda: None) -> float:
    """Read an epoch while `alongside` runs in a thread; return the seconds until both are done."""
    loader = open_loader(path, cache)
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(alongside)
        count = sum(len(batch.keys) for batch in loader.batches(0, len(loader.sampler)))
        other.result()
    seconds = time.perf_counter() - start
    assert count == len(loader.sampler), (count, len(loader.sampler))
    loader.dataset.source.close()
    return seconds


def digest(path: str, cache: Path) -> str:
    """Return the SHA-256 of all that an epoch hands out."""
    loader, hashed = open_loader(path, cache), hashlib.sha256()
    for batch in loader.batches(0, len(loader.sampler)):
        hashed.update("\n".join(batch.keys).encode())
        for part in (batch.views[0], *batch.packed, batch.present):
            hashed.update(part.contiguous().numpy().tobytes())
    loader.dataset.source.close()
    return hashed.hexdigest()


def at(url: str, dataset: str = "") -> str:
    """Return the http address of a dataset behind a link; the environment's endpoint leads to one server only."""
    return f"{url}/bucket/{dataset}".rstrip("/")


def whole(bench: Bench, server: Nginx, work: Path, count: int, repeats: int) -> None:
    """Measure; `work` / "bucket" is what the server serves."""
    folder = work / "bucket" / "tiles"
    write(folder, count, PER_SHARD, genetics=True)
    shards = read_manifest(folder).shards
    size = sum(shard.bytes for shard in shards)
    near = "s3://bucket/tiles"
    before = server.requests()
    same = digest(near, work / "gate-store")
    requests = server.requests() - before
    bench.gate("loader: keys, images and genetics equal those from disk", same == digest(str(folder), work / "gate"))
    bench.figure("loader: requests of a cold epoch, opening and genetics with it", requests, "")
    bench.bar("loader: requests per 20 samples, by the server's log", 20 * requests / count, "<=", 1)

    def beside(checked: bool) -> Call:
        """From disk while the same bytes are downloaded: the best that an epoch from the store could be here."""
        manifest, tiles = Manifest(shards=shards), at(server.url, "tiles")
        return lambda cold: epoch(str(folder), cold, lambda: raw(tiles, manifest, cold / "raw", checked))

    near_and_disk: dict[str, Call] = {
        "loader from disk": partial(epoch, str(folder)),
        "loader from the store": partial(epoch, near),
        "loader from disk beside a raw download": beside(checked=False),
        "loader from disk beside a raw download, checked": beside(checked=True),
    }
    close = Turns(near_and_disk, work, CLOSE)
    for name in near_and_disk:
        bench.figure(name, count / close.median(name), "images/s")
    for name in list(near_and_disk)[2:]:
        bench.figure(f"{name} / disk alone", close.speed(name, "loader from disk"), "")
        bench.figure(
            f"loader from the store / {name.removeprefix('loader ')}", close.speed("loader from the store", name), ""
        )
    bench.bar("loader: store / disk", close.speed("loader from the store", "loader from disk"), ">=", 0.95)
    with ExitStack() as stack:
        calls: dict[str, Call] = {"loader from the store": partial(epoch, near)}
        for delay in DELAYS:
            url = stack.enter_context(link(server.port, delay))
            calls[f"loader, {delay * 1e3:g} ms"] = partial(epoch, at(url, "tiles"))
        turns = Turns(calls, work, repeats)
    for delay in DELAYS:
        name = f"loader, {delay * 1e3:g} ms"
        bench.figure(name, count / turns.median(name), "images/s")
        bench.bar(f"{name} / near", turns.speed(name, "loader from the store"), ">=", 0.8)

    rate = size / close.median("loader from disk") / 2
    with link(server.port, DELAYS[0], rate) as url:
        turns = Turns({"narrow": partial(epoch, at(url, "tiles"))}, work, 2)
    bench.figure("loader: rate of the narrow link, half of what it takes from disk", rate / 1e6, "MB/s")
    bench.bar("loader: share of the narrow link", size / turns.median("narrow") / rate, ">=", 0.9)
