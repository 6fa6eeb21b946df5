"""Other loaders on the same object store, for benchmarks.object_store: each in its own process and format.

``PYTHON -m benchmarks.object_store.peers NAME URL BUCKET REPEATS COUNT`` prints what it measured as JSON: seconds of
cold epochs that hand out bytes (``fetch``) and of such that decode, rotate (bilinear), flip and normalise to float32
(``whole``); the sorted CRC-32 of the bytes; how many images, and of what kind.

Each has two processes or threads that decode, ours among them, which downloads in up to ``data.fetch.requests`` threads
more. They don't take turns by the epoch, as the calls of benchmarks.object_store do: one process after another does all
its repeats. A cold epoch begins with an empty cache; the processes of a DataLoader start within it, as for its user.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Bench, python
from benchmarks.harness.servers import Nginx
from benchmarks.object_store.whole_loader import BATCH, SIZE, jpegs, open_loader, write
from mrmfast.formats.manifest import read_manifest

COUNT, PER_SHARD, WORKERS = 2_048, 256, 2
LIMIT = 180  # seconds a peer may take
KIND = [3, SIZE, SIZE, "float32"]  # an image, decoded
Batches = Iterable[Any]


class Transform:
    """JPEG bytes to a float tensor, as torchvision does it; the bytes themselves where nothing is to be decoded."""

    def __init__(self, decode: bool) -> None:
        from torchvision import transforms
        from torchvision.transforms import InterpolationMode

        self._decode = decode
        self._transform = transforms.Compose(
            [
                transforms.RandomRotation(20, InterpolationMode.BILINEAR),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
            ]
        )

    def __call__(self, sample: Any) -> Any:
        """Take a sample of any of the loaders: bytes, or a dict that holds them as ``jpg``."""
        from PIL import Image

        jpeg = bytes(sample["jpg"] if isinstance(sample, dict) else sample)
        return self._transform(Image.open(io.BytesIO(jpeg)).convert("RGB")) if self._decode else jpeg


def mrmfast(url: str, bucket: Path, cache: Path, decode: bool) -> Batches:
    """Ours; without decoding, each JPEG out of the fetched shards."""
    loader = open_loader("s3://bucket/peers", cache, "float32")
    if decode:
        return (batch.views[0] for batch in loader.batches(0, len(loader.plan)))
    dataset, source = loader.dataset, loader.dataset.source

    def bytes_only() -> Batches:
        source.prefetch(dataset.manifest.shards)
        for number, shard in enumerate(dataset.manifest.shards):
            raw = np.memmap(source.local(shard), mode="r")
            rows = np.flatnonzero(dataset.table.shard == number)
            ends = dataset.table.offset[rows] + dataset.table.size[rows]
            yield [raw[start:end].tobytes() for start, end in zip(dataset.table.offset[rows], ends, strict=True)]

    return bytes_only()


def webdataset(url: str, bucket: Path, cache: Path, decode: bool) -> Batches:
    """WebDataset: curl into a tar reader in each of two workers."""
    import webdataset as wds
    from torch.utils.data import DataLoader

    tars = [f"pipe:curl -sf {url}/bucket/peers/{shard.path}" for shard in read_manifest(bucket / "peers").shards]
    dataset = wds.WebDataset(tars, shardshuffle=False, empty_check=False).map(Transform(decode))
    collate = None if decode else list
    return DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate)


def litdata(url: str, bucket: Path, cache: Path, decode: bool) -> Batches:
    """LitData: chunks of the size of our shards."""
    import litdata as ld

    # It fetches with obstore, which refuses plain http unless told, and has no setting of its own for that.
    ld.streaming.downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True

    class Transformed(ld.StreamingDataset):
        change = Transform(decode)

        def __getitem__(self, index: Any) -> Any:
            return self.change(super().__getitem__(index))

    dataset = Transformed(
        ld.streaming.resolver.Dir(path=str(cache / "litdata"), url="s3://bucket/litdata"),
        storage_options={"endpoint_url": url},
        shuffle=False,
    )
    collate = {} if decode else {"collate_fn": list}
    return ld.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, **collate)


def mosaicml(url: str, bucket: Path, cache: Path, decode: bool) -> Batches:
    """MosaicML Streaming: MDS shards of the size of ours."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    os.environ["S3_ENDPOINT_URL"] = url

    class Transformed(StreamingDataset):
        change = Transform(decode)

        def __getitem__(self, index: Any) -> Any:
            return self.change(super().__getitem__(index))

    dataset = Transformed(remote="s3://bucket/mds", local=str(cache / "mds"), shuffle=False, batch_size=BATCH)
    return DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=None if decode else list)


def dali(url: str, bucket: Path, cache: Path, decode: bool) -> Batches:
    """DALI's own reader of tars on S3, with its CPU operators."""
    import nvidia.dali
    from nvidia.dali import pipeline_def

    fn: Any = nvidia.dali.fn
    types: Any = nvidia.dali.types
    manifest = read_manifest(bucket / "peers")
    options: dict[str, Any] = {"batch_size": BATCH, "num_threads": WORKERS, "device_id": None}

    @pipeline_def(**options)
    def graph() -> Any:
        jpeg = fn.readers.webdataset(
            paths=[f"s3://bucket/peers/{shard.path}" for shard in manifest.shards],
            index_paths=[str(bucket / "peers" / shard.index) for shard in manifest.shards],
            ext=["jpg"],
            pad_last_batch=False,
        )
        if not decode:
            return jpeg
        picture = fn.rotate(
            fn.decoders.image(jpeg, device="cpu"), angle=fn.random.uniform(range=(-20.0, 20.0)), size=(SIZE, SIZE)
        )
        return fn.crop_mirror_normalize(
            picture, mirror=fn.random.coin_flip(), dtype=types.FLOAT, mean=[127.5] * 3, std=[63.75] * 3
        )

    pipeline: Any = graph()
    pipeline.build()

    def batches() -> Batches:
        for _ in range(manifest.samples // BATCH):
            (out,) = pipeline.run()
            yield [np.asarray(out[i]).tobytes() for i in range(BATCH)] if not decode else out

    return batches()


LOADERS: dict[str, Callable[[str, Path, Path, bool], Batches]] = {
    "mrmfast": mrmfast,
    "DALI": dali,
    "LitData": litdata,
    "MosaicML Streaming": mosaicml,
    "WebDataset": webdataset,
}


def write_litdata(folder: Path, count: int) -> None:
    """Write LitData's chunks."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=PER_SHARD)
    for number, jpeg in enumerate(jpegs(count)):
        writer[number] = jpeg
    writer.done()
    writer.merge()


def write_mds(folder: Path, count: int) -> None:
    """Write MosaicML's shards."""
    from streaming import MDSWriter

    size = PER_SHARD * sum(map(len, jpegs(64))) // 64
    with MDSWriter(out=str(folder), columns={"jpg": "bytes"}, size_limit=size) as writer:
        for jpeg in jpegs(count):
            writer.write({"jpg": jpeg})


FORMATS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "LitData": ("litdata", write_litdata),
    "MosaicML Streaming": ("mds", write_mds),
}


def measure(name: str, url: str, bucket: Path, repeats: int) -> dict[str, Any]:
    """Measure one loader in this process; see the top of this file for what is returned."""
    seconds: dict[str, list[float]] = {"fetch": [], "whole": []}
    found: dict[str, list[Any]] = {"sums": [], "pictures": [], "kinds": []}
    for mode in seconds:
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as cache:
                batches = LOADERS[name](url, bucket, Path(cache), mode == "whole")
                got: list[bytes] = []
                batch, count, start = None, 0, time.perf_counter()
                for batch in batches:
                    count += len(batch)
                    got += batch if mode == "fetch" else []
                seconds[mode].append(time.perf_counter() - start)
            if mode == "fetch":
                found["sums"].append(sorted(map(zlib.crc32, got)))
            else:
                picture = np.asarray(batch[0] if batch is not None else None)
                found["pictures"].append(count)
                found["kinds"].append([*picture.shape, str(picture.dtype)])
    return {"seconds": seconds, **found}


def peers(bench: Bench, server: Nginx, work: Path, interpreter: str, repeats: int, count: int = COUNT) -> None:
    """Measure all, each in a process of its own, one after another.

    Parameters
    ----------
    bench : Bench
    server : Nginx
        Serves `work`.
    work : Path
    interpreter : str
        Python with the ``peers`` extra; ours runs in the present one.
    repeats : int
        Epochs of each kind.
    count : int
        Images; a multiple of ``BATCH``.

    Raises
    ------
    GateError
        A loader hands out something else, or ours does not run. Others that do not are skipped by name.
    """
    bucket = work / "bucket"
    write(bucket / "peers", count, PER_SHARD, genetics=False)
    expected = sorted(zlib.crc32(jpeg) for jpeg in jpegs(count))
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    medians: dict[str, dict[str, float]] = {}
    for name in LOADERS:
        before = server.requests()
        command = [
            python()[0] if name == "mrmfast" else interpreter,
            *("-m", "benchmarks.object_store.peers", name, server.url, str(bucket), str(repeats), str(count)),
        ]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
            reason = _reason(done.stderr) if done.returncode else ""
        except subprocess.TimeoutExpired:
            reason = f"took longer than {LIMIT} s"
        if reason:
            bench.skip(name, reason)
            if name == "mrmfast":
                bench.gate("mrmfast: runs", False)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        bench.gate(f"{name}: the JPEG bytes of all {count:,} samples", found["sums"] == [expected] * repeats)
        bench.gate(f"{name}: {count:,} pictures decoded", found["pictures"] == [count] * repeats)
        bench.gate(f"{name}: pictures are {KIND[-1]} {tuple(KIND[:-1])}", found["kinds"] == [KIND] * repeats)
        requests = (server.requests() - before) / (2 * repeats)
        medians[name] = {mode: float(np.median(taken)) for mode, taken in found["seconds"].items()}
        for mode, taken in medians[name].items():
            bench.figure(f"{name}, {mode}, cold", count / taken, "images/s")
            if name != "mrmfast":
                bench.figure(f"mrmfast / {name}, {mode}", taken / medians["mrmfast"][mode], "")
        bench.figure(f"{name}: requests per 20 samples", 20 * requests / count, "")


def _reason(said: str) -> str:
    """Return the line of what a failed process said that names the error, not what its helpers say after it."""
    lines = said.strip().splitlines() or ["no message"]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (errors or lines)[-1][:400]


def main() -> None:
    """Measure one loader, or write its format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=LOADERS)
    parser.add_argument("url")
    parser.add_argument("bucket", type=Path)
    parser.add_argument("repeats", type=int)
    parser.add_argument("count", type=int)
    arguments = parser.parse_args()
    if arguments.name in FORMATS:
        folder, write_format = FORMATS[arguments.name]
        if not (arguments.bucket / folder).exists():
            write_format(arguments.bucket / folder, arguments.count)
    print(json.dumps(measure(arguments.name, arguments.url, arguments.bucket, arguments.repeats)))


if __name__ == "__main__":
    main()
