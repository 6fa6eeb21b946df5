"""Loaders of whole bytes with PIL and torchvision on top, as their users write them: processes, or threads for SPDL."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.peers.task import ANGLE, BATCH, FLIP, MEAN, STD, THREADS, Task
from mrmfast.formats.sample_table import read_sample_table

WORKERS: dict[str, Any] = {"batch_size": BATCH, "num_workers": THREADS, "persistent_workers": True}
WORKERS["multiprocessing_context"] = "fork"
TRANSFORMERS = {
    "transformers": "AutoTokenizer",
    "transformers.feature_extraction_utils": "BatchFeature",
    "transformers.tokenization_utils_base": "BatchEncoding",
    "transformers.models.auto.tokenization_auto": "AutoTokenizer",
}


class Transform:
    """Bytes of a JPEG to a normalised tensor; `draft` lets libjpeg decode at a reduced scale."""

    def __init__(self, task: Task, draft: bool = False) -> None:
        steps = [transforms.Resize(task.size)] if task.stored != task.size else []
        if task.rotate:
            steps.append(transforms.RandomRotation(ANGLE, transforms.InterpolationMode.BILINEAR))
        steps += [transforms.RandomHorizontalFlip(FLIP), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self._steps, self._draft, self._size = transforms.Compose(steps), draft, task.size

    def __call__(self, jpeg: bytes) -> Tensor:
        """Decode and augment."""
        image: Image.Image = Image.open(io.BytesIO(jpeg))
        if self._draft:
            image.draft("RGB", (self._size, self._size))
        result: Tensor = self._steps(image.convert("RGB"))
        return result


def jpegs(task: Task) -> list[bytes]:
    """Read all images of a dataset."""
    table = read_sample_table(str(task.dataset))
    shards = [path.read_bytes() for path in sorted((task.dataset / "images").glob("*.tar"))]
    columns = zip(table.shard.tolist(), table.offset.tolist(), table.size.tolist(), strict=True)
    return [shards[shard][offset : offset + size] for shard, offset, size in columns]


class Files(Dataset[Tensor]):
    """One file a image."""

    def __init__(self, task: Task, draft: bool = False) -> None:
        folder = task.work / "files"
        self._transform = Transform(task, draft)
        if not folder.exists():
            folder.mkdir(parents=True)
            for number, jpeg in enumerate(jpegs(task)):
                (folder / f"{number:06d}.jpg").write_bytes(jpeg)
        self.paths = sorted(map(str, folder.iterdir()))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        with open(self.paths[number], "rb") as file:
            return self._transform(file.read())


class Torch:
    """PyTorch's DataLoader over files."""

    draft = False

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(1)
        self._loader = DataLoader(Files(task, self.draft), shuffle=True, **WORKERS)

    def epoch(self) -> Iterable[Any]:
        """Give an epoch."""
        return self._loader


class TorchDraft(Torch):
    """The same with Pillow's draft mode, which few use."""

    draft = True


class WebDataset:
    """WebDataset over the tars."""

    def __init__(self, task: Task) -> None:
        import webdataset

        transform = Transform(task)
        tars = sorted(map(str, (task.dataset / "images").glob("*.tar")))
        pipeline = webdataset.WebDataset(tars, shardshuffle=len(tars), workersplitter=webdataset.split_by_worker)
        pipeline = pipeline.shuffle(1000).to_tuple("jpg").map_tuple(transform)
        self._loader = DataLoader(pipeline, **WORKERS)

    def epoch(self) -> Iterable[Any]:
        """Give an epoch."""
        return self._loader


def _sample(jpeg: bytes) -> dict[str, bytes]:
    return {"jpg": jpeg}


class LitData:
    """LitData over chunks of 64 MB."""

    def __init__(self, task: Task) -> None:
        import litdata

        folder = task.work / "litdata"
        if not folder.exists():
            litdata.optimize(_sample, jpegs(task), str(folder), chunk_bytes="64MB", num_workers=1)
        transform = Transform(task)

        class Set(litdata.StreamingDataset):
            def __getitem__(self, index: Any) -> Any:
                return transform(super().__getitem__(index)["jpg"])

        self._loader = litdata.StreamingDataLoader(Set(str(folder), shuffle=True), **WORKERS)

    def epoch(self) -> Iterable[Any]:
        """Give an epoch."""
        return self._loader


class Mosaic:
    """MosaicML Streaming over MDS shards."""

    def __init__(self, task: Task) -> None:
        # It imports transformers for its sets of texts, whose pins fight with most environments; nothing here needs it.
        for name, member in TRANSFORMERS.items():
            sys.modules.setdefault(name, types.ModuleType(name))
            setattr(sys.modules[name], member, type(member, (dict,), {}))
        import streaming

        folder = task.work / "mds"
        if not folder.exists():
            with streaming.MDSWriter(out=str(folder), columns={"jpg": "bytes"}) as writer:
                for jpeg in jpegs(task):
                    writer.write(_sample(jpeg))
        transform = Transform(task)

        class Set(streaming.StreamingDataset):
            def __getitem__(self, index: Any) -> Any:
                return transform(super().__getitem__(index)["jpg"])

        streaming.base.util.clean_stale_shared_memory()
        self._loader: Iterable[Any] = DataLoader(Set(local=str(folder), shuffle=True, batch_size=BATCH), **WORKERS)

    def epoch(self) -> Iterable[Any]:
        """Give an epoch."""
        return self._loader


class SPDL:
    """SPDL's pipeline: threads, over files."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(1)
        self._files = Files(task)
        self._generator = np.random.default_rng()

    def epoch(self) -> Iterable[Any]:
        """Give an epoch."""
        from spdl.pipeline import PipelineBuilder

        order = self._generator.permutation(len(self._files)).tolist()
        builder: Any = PipelineBuilder().add_source(order).pipe(self._files.__getitem__, concurrency=THREADS)
        pipeline = builder.aggregate(BATCH).pipe(torch.stack).add_sink(3).build(num_threads=THREADS)
        with pipeline.auto_stop():
            yield from pipeline.get_iterator()
