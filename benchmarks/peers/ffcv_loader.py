"""FFCV, which needs an environment of its own (it builds against OpenCV and libjpeg-turbo, and wants NumPy below 2).

On Debian: ``apt-get install libopencv-dev libturbojpeg0-dev pkg-config g++``; then, in a fresh virtual environment,
``pip install setuptools wheel "numpy<2" numba torch pillow opencv-python==4.11.0.86 psutil`` and ``pip install
--no-build-isolation ffcv==1.0.2 "numpy<2" opencv-python==4.11.0.86``. Its interpreter is the benchmark's
``--ffcv-python``. It cannot rotate.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ffcv import fields, transforms, writer
from ffcv.fields import decoders
from ffcv.fields.rgb_image import IMAGE_MODES
from ffcv.loader import Loader, OrderOption

from benchmarks.peers.task import BATCH, FLIP, MEAN, STD, THREADS, Task


class Stored:
    """Bytes of the files that the others read."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> tuple[np.ndarray]:
        return (np.fromfile(self._paths[number], np.uint8),)


def _write(task: Task, path: Path) -> None:
    """Write a ``.beton`` that holds the very JPEGs: FFCV would encode pixels anew."""

    def encode(self: Any, destination: Any, jpeg: np.ndarray, malloc: Any) -> None:
        destination["mode"] = IMAGE_MODES["jpg"]
        destination["height"] = destination["width"] = task.stored
        destination["data_ptr"], storage = malloc(jpeg.nbytes)
        storage[:] = jpeg

    fields.RGBImageField.encode = encode
    images = {"jpg": fields.RGBImageField(write_mode="jpg")}
    writer.DatasetWriter(str(path), images, num_workers=1).from_indexed_dataset(Stored(task.work / "files"))


class FFCV:
    """Its fastest settings: the file in memory, compiled operators, two threads."""

    def __init__(self, task: Task) -> None:
        assert not task.rotate, "FFCV has no rotation"
        path = task.work / "tiles.beton"
        if not path.exists():
            _write(task, path)
        if task.stored == task.size:
            decoder: Any = decoders.SimpleRGBImageDecoder()
        else:
            decoder = decoders.CenterCropRGBImageDecoder((task.size, task.size), ratio=1)
        steps: list[Any] = [decoder, transforms.RandomHorizontalFlip(FLIP)]
        if task.pixels == "float32":
            mean, std = (255 * np.array(values) for values in (MEAN, STD))
            steps.append(transforms.NormalizeImage(mean, std, np.float32))
        steps += [transforms.ToTensor(), transforms.ToTorchImage()]
        options: dict[str, Any] = {"batch_size": BATCH, "num_workers": THREADS, "order": OrderOption.RANDOM}
        self._loader = Loader(str(path), **options, os_cache=True, drop_last=False, pipelines={"jpg": steps})

    def epoch(self) -> Iterable[Any]:
        """Give an epoch."""
        return self._loader
