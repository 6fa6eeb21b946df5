"""DALI with its own reader and its CPU operators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nvidia.dali import fn, pipeline_def
from nvidia.dali import types as dali_types
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

from benchmarks.peers.task import ANGLE, BATCH, FLIP, MEAN, STD, THREADS, Task


class DALI:
    """The tars through ``readers.webdataset``, decoded, rotated, flipped and normalised on the CPU."""

    def __init__(self, task: Task) -> None:
        types: Any = dali_types
        tars = sorted((task.dataset / "images").glob("*.tar"))

        settings: dict[str, Any] = {"batch_size": BATCH, "num_threads": THREADS, "device_id": None}

        @pipeline_def(**settings)
        def graph() -> Any:
            jpeg: Any = fn.readers.webdataset(
                paths=[str(tar) for tar in tars],
                index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
                ext=["jpg"],
                random_shuffle=True,
                initial_fill=1000,
                name="reader",
            )
            image: Any = fn.decoders.image(jpeg, device="cpu", output_type=types.RGB)
            if task.stored != task.size:
                image = fn.resize(image, size=(task.size, task.size), interp_type=types.INTERP_LINEAR, antialias=True)
            if task.rotate:
                angle = fn.random.uniform(range=(-ANGLE, ANGLE))
                image = fn.rotate(image, angle=angle, keep_size=True, fill_value=0, interp_type=types.INTERP_LINEAR)
            mean, std = ([255 * value for value in values] for values in (MEAN, STD))
            mirror = fn.random.coin_flip(probability=FLIP)
            return fn.crop_mirror_normalize(
                image, mirror=mirror, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std
            )

        self._loader = DALIGenericIterator(
            [graph()], ["jpg"], reader_name="reader", auto_reset=True, last_batch_policy=LastBatchPolicy.PARTIAL
        )

    def epoch(self) -> Iterable[Any]:
        """Give an epoch."""
        return self._loader
