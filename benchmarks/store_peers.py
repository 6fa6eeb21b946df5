"""Other loaders on the same object store, for benchmarks.object_store: each in its own process and format.

``PYTHON -m benchmarks.store_peers NAME URL BUCKET REPEATS`` prints what it measured as JSON: seconds of cold epochs
that hand out bytes (``fetch``) and of such that decode, rotate (bilinear), flip and normalise too (``whole``), with two
workers or threads, and the sorted CRC-32 of the bytes it handed out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Bench, python
from benchmarks.servers import Nginx
from benchmarks.store_loader import BATCH, SIZE, jpegs, open_loader, write

COUNT, PER_SHARD, WORKERS = 2_048, 256, 2
LIMIT = 180  # seconds a peer may take
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
    loader = open_loader("s3://bucket/peers", cache)
    if decode:
        return loader.batches(0, len(loader.plan))
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

    tars = [f"pipe:curl -sf {url}/bucket/peers/images/shard-{n:06d}.tar" for n in range(COUNT // PER_SHARD)]
    dataset = wds.WebDataset(tars, shardshuffle=False, empty_check=False).map(Transform(decode))
    collate = None if decode else list
    return DataLoader(dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=collate)


def litdata(url: str, bucket: Path, cache: Path, decode: bool) -> Batches:
    """LitData: chunks of the size of our shards."""
    import litdata as ld

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
    names = [f"images/shard-{number:06d}" for number in range(COUNT // PER_SHARD)]

    options: dict[str, Any] = {"batch_size": BATCH, "num_threads": WORKERS, "device_id": None}

    @pipeline_def(**options)
    def graph() -> Any:
        (jpeg,) = fn.readers.webdataset(
            paths=[f"s3://bucket/peers/{name}.tar" for name in names],
            index_paths=[str(bucket / "peers" / f"{name}.idx") for name in names],
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
        for _ in range(COUNT // BATCH):
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


def write_litdata(folder: Path) -> None:
    """Write LitData's chunks."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_size=PER_SHARD)
    for number, jpeg in enumerate(jpegs(COUNT)):
        writer[number] = jpeg
    writer.done()
    writer.merge()


def write_mds(folder: Path) -> None:
    """Write MosaicML's shards."""
    from streaming import MDSWriter

    size = PER_SHARD * sum(map(len, jpegs(64))) // 64
    with MDSWriter(out=str(folder), columns={"jpg": "bytes"}, size_limit=size) as writer:
        for jpeg in jpegs(COUNT):
            writer.write({"jpg": jpeg})


def measure(name: str, url: str, bucket: Path, repeats: int) -> dict[str, Any]:
    """Measure one loader in this process."""
    seconds: dict[str, list[float]] = {"fetch": [], "whole": []}
    sums: list[int] = []
    for mode in seconds:
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as cache:
                batches = LOADERS[name](url, bucket, Path(cache), mode == "whole")
                start, got = time.perf_counter(), []
                for batch in batches:
                    got.append(batch if mode == "fetch" else None)
                seconds[mode].append(time.perf_counter() - start)
                if mode == "fetch":
                    sums = sorted(zlib.crc32(jpeg) for some in got if some is not None for jpeg in some)
    return {"seconds": seconds, "sums": sums}


def peers(bench: Bench, server: Nginx, work: Path, interpreter: str, repeats: int) -> None:
    """Measure all, each in its own process, in turn; `interpreter` has the ``peers`` extra."""
    bucket = work / "bucket"
    write(bucket / "peers", COUNT, PER_SHARD, genetics=False)
    expected = sorted(zlib.crc32(jpeg) for jpeg in jpegs(COUNT))
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    medians: dict[str, dict[str, float]] = {}
    for name in LOADERS:
        before = server.requests()
        command = [
            python()[0] if name == "mrmfast" else interpreter,
            *("-m", "benchmarks.store_peers", name, server.url, str(bucket), str(repeats)),
        ]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            bench.skip(name, f"took longer than {LIMIT} s")
            continue
        if done.returncode:
            bench.skip(name, (done.stderr.strip().splitlines() or ["no message"])[-1][:200])
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        bench.gate(f"{name}: the JPEG bytes of all {COUNT:,} samples", found["sums"] == expected)
        requests = (server.requests() - before) / (2 * repeats)
        medians[name] = {mode: float(np.median(taken)) for mode, taken in found["seconds"].items()}
        for mode, taken in medians[name].items():
            bench.figure(f"{name}, {mode}, cold", COUNT / taken, "images/s")
            if name != "mrmfast":
                bench.figure(f"mrmfast / {name}, {mode}", taken / medians["mrmfast"][mode], "")
        bench.figure(f"{name}: requests per 20 samples", 20 * requests / COUNT, "")


def main() -> None:
    """Measure one loader, or write its format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=LOADERS)
    parser.add_argument("url")
    parser.add_argument("bucket", type=Path)
    parser.add_argument("repeats", type=int)
    arguments = parser.parse_args()
    for name, folder, write_format in (
        ("LitData", arguments.bucket / "litdata", write_litdata),
        ("MosaicML Streaming", arguments.bucket / "mds", write_mds),
    ):
        if arguments.name == name and not folder.exists():
            write_format(folder)
    print(json.dumps(measure(arguments.name, arguments.url, arguments.bucket, arguments.repeats)))


if __name__ == "__main__":
    main()
