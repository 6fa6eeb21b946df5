"""One loader on the object store, in this process: ours, DALI, LitData, MosaicML Streaming or WebDataset.

``PYTHON -m benchmarks.object_store.peers NAME URL BUCKET REPEATS COUNT`` measures cold epochs of two modes. ``fetch``
returns the JPEG bytes. ``whole`` decodes, rotates (bilinear), flips and normalises to float32. The result is a line of
JSON: ``seconds`` of each epoch by mode, ``sums`` (sorted CRC-32 of the bytes), ``images`` (their number) and ``kinds``
(shape and type of an image).

Each loader decodes in two processes or threads. Ours downloads in up to ``data.fetch.requests`` further threads. A cold
epoch begins with an empty cache. The workers of a DataLoader start within the epoch, as they do for users.
:mod:`benchmarks.object_store.compare` starts the processes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.object_store.whole_loader import BATCH, SIZE, jpegs, open_loader
from mrmfast.formats.manifest import read_manifest

COUNT, PER_SHARD, WORKERS = 2_048, 256, 2
KIND = [3, SIZE, SIZE, "float32"]  # shape and type of a decoded image
Batches = Iterable[Any]


class Transform:
    """Turns JPEG bytes into a float tensor with torchvision; without decoding, returns the bytes."""

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
    """Our loader; without decoding, the JPEG bytes of the fetched shards."""
    loader = open_loader("s3://bucket/peers", cache, "float32")
    if decode:
        return (batch.views[0] for batch in loader.batches(0, len(loader.sampler)))
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

    # LitData fetches with obstore and has no setting of its own for plain http, which obstore refuses by default.
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
        image = fn.rotate(
            fn.decoders.image(jpeg, device="cpu"), angle=fn.random.uniform(range=(-20.0, 20.0)), size=(SIZE, SIZE)
        )
        return fn.crop_mirror_normalize(
            image, mirror=fn.random.coin_flip(), dtype=types.FLOAT, mean=[127.5] * 3, std=[63.75] * 3
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
    """Measure one loader in this process; the top of this file describes the result."""
    seconds: dict[str, list[float]] = {"fetch": [], "whole": []}
    results: dict[str, list[Any]] = {"sums": [], "images": [], "kinds": []}
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
                results["sums"].append(sorted(map(zlib.crc32, got)))
            else:
                image = np.asarray(batch[0] if batch is not None else None)
                results["images"].append(count)
                results["kinds"].append([*image.shape, str(image.dtype)])
    return {"seconds": seconds, **results}


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
