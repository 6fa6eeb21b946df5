"""Fifty epochs of a small set: whether memory, threads, file handles, /dev/shm and processes stay as they were.

``python -m benchmarks.loader.flatness [--epochs 50] [--json FILE]``

512 images of 64 px in 128 shards, with genetics; each backend, from disk and from an object store (nginx on loopback,
a cache with room for three quarters of the shards, so that every epoch evicts and fetches again), in two ways: one
stream through all epochs, as in training; or each epoch to its end, and a stream left after its first batch besides.
Each in a process of its own. Growth is from the epochs around a fifth of the run to its last five (medians); /dev/shm
is the whole machine's, so nothing else should use it meanwhile. Gates: every epoch holds every image once, disk and
object store give the same images, and a leak planted on purpose is seen.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast, get_args

import cv2
import numpy as np
import psutil
import torch

from benchmarks.harness import Bench, python
from benchmarks.harness.servers import nginx
from mrmfast.batch import Batch
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.genetics.store import FeatureTable, write_modality
from mrmfast.data.images.backend import Backend
from mrmfast.data.loader import Loader
from mrmfast.formats.image_shards import Sample, finalise_images, write_shard
from mrmfast.formats.manifest import SplitRule, claim_splits
from mrmfast.storage.config import FetchConfig

PICTURES, SHARDS, SIZE, BATCH, FEATURES = 512, 128, 64, 32, 400
ROOM = 0.75  # of the shards, in the cache
CONNECTIONS = 2  # handles by which the runs' ends may differ: connections stay open as long as the server likes
WAYS = ("stream", "ends")
BACKENDS = tuple(name for name in get_args(Backend) if name != "auto")


def write(folder: Path) -> None:
    """Write the dataset: noise of low frequency, one participant an image."""
    generator = np.random.default_rng(0)
    claim_splits(folder, SplitRule(0, 0.0))
    ids = [str(1_000_000 + number) for number in range(PICTURES)]
    samples = []
    for number, name in enumerate(ids):
        picture = cv2.resize(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8), (SIZE, SIZE))
        samples.append(Sample(f"{number:09d}", cv2.imencode(".jpg", picture)[1].tobytes(), name, {}))
    parts = [write_shard(folder, shard, samples[shard::SHARDS]) for shard in range(SHARDS)]
    finalise_images(folder, parts, image_size=SIZE, schema={"jpg": "RGB"}, statistics={})
    table = FeatureTable.build([f"f{i}" for i in range(FEATURES)], ["chr1"] * FEATURES)
    write_modality(folder, "snps", "genotype", ids, table, [generator.integers(-1, 3, (PICTURES, FEATURES))])


def held() -> dict[str, int]:
    """Return what this process holds now: resident bytes, threads, file handles, /dev/shm, child processes."""
    gc.collect()
    process = psutil.Process()
    shared = [entry.stat() for entry in os.scandir("/dev/shm")]
    return {
        "resident": process.memory_info().rss,
        "threads": process.num_threads(),
        "handles": process.num_fds(),
        "shm files": len(shared),
        "shm bytes": sum(state.st_blocks * 512 for state in shared),
        "processes": len(process.children(recursive=True)),
    }


def epochs(loader: Loader, number: int, way: str) -> Iterator[list[Batch]]:
    """Yield the batches of one epoch after another, in one of ``WAYS``."""
    length = len(loader.plan)
    if way == "stream":
        with closing(loader.batches(0)) as batches:
            for _ in range(number):
                yield list(itertools.islice(batches, length // loader.batch))
        return
    for epoch in range(number):
        yield list(loader.batches(epoch * length, (epoch + 1) * length))
        with closing(loader.batches(epoch * length)) as batches:
            next(batches)


def watch(config: DataConfig, number: int, way: str, leak: bool = False, batch: int = BATCH) -> dict[str, Any]:
    """Go through epochs in this process, in batches that divide the dataset.

    Returns
    -------
    dict
        ``exact``: each epoch held each image once; ``digest`` of the first epoch's images in the order of their
        keys; ``evictions`` of the cache; ``held``: what :func:`held` said after each epoch.
    """
    dataset = open_dataset(config)
    settings = {"rank": 0, "world": 1, "device": torch.device("cpu")}
    loader = Loader(dataset, config, seed=0, batch=batch, micro_batch=batch, **settings)  # type: ignore[arg-type]
    everyone = sorted(dataset.table.key[dataset.selected].tolist())
    exact, digest, seen, leaked = True, "", [], []
    for batches in epochs(loader, number, way):
        keys = [key for batch in batches for key in batch.keys]
        exact &= sorted(keys) == everyone
        if not digest:
            pictures = torch.cat([batch.views[0] for batch in batches])[np.argsort(keys).tolist()]
            digest = hashlib.sha256(pictures.contiguous().numpy().tobytes()).hexdigest()
        if leak:
            leaked.append((np.ones(1 << 18), open(os.devnull), threading.Event()))  # noqa: SIM115 - a leak
            threading.Thread(target=leaked[-1][2].wait, daemon=True).start()
        del batches
        seen.append(held())
    dataset.source.close()
    evictions = loader.meters.counts.get("cache_evictions", 0)
    return {"exact": exact, "digest": digest, "evictions": evictions, "held": seen}


def growth(seen: list[dict[str, int]]) -> dict[str, float]:
    """Return by how much each count's median grew, and the resident memory as a share.

    Medians, since open connections and shards differ by one or two from epoch to epoch; a leak of one an epoch makes 40
    of 50 epochs.
    """
    first, last = seen[max(1, len(seen) // 5 - 2) : len(seen) // 5 + 3], seen[-5:]
    before, after = ({name: statistics.median(one[name] for one in some) for name in seen[0]} for some in (first, last))
    grown = {name: after[name] - before[name] for name in seen[0]}
    return grown | {"resident": after["resident"] / before["resident"] - 1}


def in_a_process(path: str, backend: str, way: str, number: int, leak: bool = False) -> dict[str, Any]:
    """Run :func:`watch` in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        arguments = ["--watch", path, cache, backend, way, *(["--leak"] if leak else [])]
        command = python("-m", "benchmarks.loader.flatness", "--epochs", str(number), *arguments)
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def config_of(path: str, cache: str, backend: str, room: int) -> DataConfig:
    """Return the loader's settings; `room` bytes for shards in the cache."""
    fetch = FetchConfig(requests=4, cache_gb=room / 1e9)
    return DataConfig(
        path=path,
        cache=cache,
        backend=cast(Backend, backend),
        image_size=SIZE,
        shuffle_window=1,
        anonymous=True,
        fetch=fetch,
    )


def main() -> int:
    """Run; exit status 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--watch", nargs=4, metavar=("PATH", "CACHE", "BACKEND", "WAY"), help=argparse.SUPPRESS)
    parser.add_argument("--leak", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.watch:
        path, cache, backend, way = arguments.watch
        room = int(ROOM * int(os.environ["MRMFAST_FLATNESS_BYTES"]))
        print(json.dumps(watch(config_of(path, cache, backend, room), arguments.epochs, way, arguments.leak)))
        return 0
    bench = Bench(f"flatness: {arguments.epochs} epochs of a small set", arguments.json)
    with tempfile.TemporaryDirectory() as folder, nginx(Path(folder)) as server:
        near = Path(folder) / "bucket" / "ds"
        write(near)
        os.environ["AWS_ENDPOINT_URL"] = server.url
        os.environ["MRMFAST_FLATNESS_BYTES"] = str(sum(path.stat().st_size for path in near.rglob("*.tar")))
        grown = growth(in_a_process(str(near), "cpu", "stream", 20, leak=True)["held"])
        seen = grown["resident"] > 0.02 and grown["threads"] > 0 and grown["handles"] > 0
        bench.gate("a leak planted on purpose is seen", seen)
        for backend in BACKENDS:
            digests = set()
            for (place, path), way in itertools.product((("disk", str(near)), ("store", "s3://bucket/ds")), WAYS):
                result, name = in_a_process(path, backend, way, arguments.epochs), f"{backend}, {place}, {way}"
                digests.add(result["digest"])
                bench.gate(f"{name}: every epoch holds every picture once", result["exact"])
                if place == "store":
                    bench.gate(f"{name}: shards are evicted and fetched again", result["evictions"] > arguments.epochs)
                report(bench, name, result["held"])
            bench.gate(f"{backend}: the same pictures from disk and object store", len(digests) == 1)
    return bench.finish()


def report(bench: Bench, name: str, seen: list[dict[str, int]]) -> None:
    """Record the bars of one run."""
    grown, last = growth(seen), seen[-1]
    bench.figure(f"{name}: resident memory at the end", last["resident"] / 1e6, "MB")
    bench.figure(f"{name}: threads at the end", last["threads"], "")
    bench.figure(f"{name}: file handles at the end", last["handles"], "")
    bench.bar(f"{name}: growth of resident memory, %", 100 * grown["resident"], "<=", 2)
    for what in ("threads", "shm files", "shm bytes"):
        bench.bar(f"{name}: growth of {what}", grown[what], "<=", 0)
    bench.bar(f"{name}: growth of handles", grown["handles"], "<=", CONNECTIONS)
    bench.bar(f"{name}: child processes", last["processes"], "<=", 0)


if __name__ == "__main__":
    sys.exit(main())
