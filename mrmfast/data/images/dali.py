"""The DALI graph: decode, resize, one warp. The only file that imports DALI.

One graph for both kinds of machine: on a GPU the decoder is ``mixed`` and the rest runs there; without one, the same
operators run on the CPU (``device_id=None``). Angles and flips come in as matrices, so the picture is a function of
(seed, epoch, sample) whatever the backend.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
import torch
from nvidia.dali import Pipeline, fn
from nvidia.dali import types as dali_types
from nvidia.dali.data_node import DataNode
from torch import Tensor

from mrmfast.batch import PIXEL_MEAN, PIXEL_STD
from mrmfast.data.images.backend import LARGEST, Fed, Pixels
from mrmfast.meters import Meters

DECODER = {False: "cpu", True: "mixed"}  # on a GPU the CPU parses and the GPU decodes


def build_graph(
    feed: Callable[[], tuple[list[np.ndarray], np.ndarray]], *, gpu: bool, stored_size: int, size: int, floats: bool
) -> DataNode:
    """Add the operators to the current DALI pipeline; the operators of a GPU and of a CPU are built by the same lines.

    Parameters
    ----------
    feed : callable
        Returns JPEG bytes (list of B uint8 arrays) and warp matrices (float32, (B, 2, 3)), once per batch.
    gpu : bool
        Decode with the ``mixed`` decoder; every later operator follows its input to the GPU.
    stored_size, size : int
        Side of the pictures in the shards and of the output, pixels.
    floats : bool
        Normalise to float32, channels first; bytes, channels last, otherwise.

    Returns
    -------
    DataNode
        (B, 3, size, size) float32 or (B, size, size, 3) uint8.

    Raises
    ------
    ValueError
        An operator is given what DALI does not take; a GPU is not needed to see that.
    """
    types: Any = dali_types  # its members are made at run time
    jpegs, matrices = fn.external_source(source=feed, num_outputs=2, dtype=[types.UINT8, types.FLOAT])
    # Pixels as they are stored: the CPU path does not turn them by an EXIF tag, so this path does not either.
    images: Any = fn.decoders.image(jpegs, device=DECODER[gpu], output_type=types.RGB, adjust_orientation=False)
    if stored_size != size:
        images = fn.resize(images, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True)
    # The matrices stay on the CPU, also on a GPU: DALI takes named arguments from there only.
    images = fn.warp_affine(images, matrix=matrices, fill_value=0, interp_type=types.INTERP_LINEAR)
    if not floats:
        return images
    mean, std = ([255 * value for value in values] for values in (PIXEL_MEAN, PIXEL_STD))
    return fn.crop_mirror_normalize(images, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std)


class DALIImages:
    """Decode and warp in DALI; the contract and the parameters are those of :mod:`mrmfast.data.images.backend`."""

    def __init__(
        self,
        source: Callable[[], Fed],
        *,
        batch: int,
        stored_size: int,
        size: int,
        device: torch.device,
        threads: int,
        depth: int,
        meters: Meters,
        pixels: Pixels = "uint8",
    ) -> None:
        self._source, self._device, self._meters = source, device, meters
        self._size, self._floats = size, pixels == "float32"
        gpu = device.type == "cuda"
        self._graph = partial(build_graph, self._feed, gpu=gpu, stored_size=stored_size, size=size, floats=self._floats)
        self._settings: dict[str, Any] = {
            "batch_size": batch,
            "num_threads": threads,
            "device_id": None,
            "prefetch_queue_depth": depth,
        }
        if gpu:
            self._settings["device_id"] = device.index or 0
        black = np.zeros((stored_size, stored_size, 3), dtype=np.uint8)
        self._black = np.frombuffer(simplejpeg.encode_jpeg(black), dtype=np.uint8)
        # Batches that DALI works on, and those that it has to be given again after a failure.
        self._under_way: deque[_Batch] = deque()
        self._again: deque[_Batch] = deque()
        self._failed: BaseException | None = None
        self._pipeline: Pipeline | None = self._build()

    def _build(self) -> Pipeline:
        pipeline = Pipeline(**self._settings)
        with pipeline:
            pipeline.set_outputs(self._graph())
        pipeline.build()
        return pipeline

    def _feed(self) -> tuple[list[np.ndarray], np.ndarray]:
        if self._again:
            batch = self._again.popleft()
        else:
            if self._failed is not None:
                raise StopIteration
            try:
                jpegs, matrices, _ = self._source()
            except BaseException as error:
                # DALI would wrap it, and drop the batches before it: they come first, then this.
                self._failed = error
                raise StopIteration from None
            # Decoders fill the rest of a truncated JPEG with grey and say nothing, so look for both end markers.
            bad = np.array([not _whole(jpeg) for jpeg in jpegs], dtype=bool)
            batch = _Batch(jpegs, matrices, bad)
        self._under_way.append(batch)
        return [self._black if bad else jpeg for jpeg, bad in zip(batch.jpegs, batch.bad, strict=True)], batch.matrices

    def run(self) -> tuple[Tensor, np.ndarray]:
        """Wait for the next batch: see :class:`mrmfast.data.images.backend.Images`."""
        assert self._pipeline is not None, "closed"
        while True:
            try:
                with self._meters.time("decode", self._settings["batch_size"]):
                    output: Any
                    (output,) = self._pipeline.run()
                break
            except StopIteration:
                assert self._failed is not None, "only a source that ends ends the stream"
                raise self._failed from None
            except RuntimeError:
                if not self._mark_undecodable():
                    raise
                self._again = deque([*self._under_way, *self._again])
                self._under_way.clear()
                self._pipeline = self._build()
        bad = self._under_way.popleft().bad
        size = self._size
        if len(bad):
            # Copied on the current stream: DALI frees its own memory in the order of that stream.
            images = torch.from_dlpack(output.as_tensor()).clone()
        else:  # a rank without a sample in the last step: an empty batch of DALI has no shape
            dtype = torch.float32 if self._floats else torch.uint8
            images = torch.empty(0, dtype=dtype, device=self._device)
        if self._floats:
            return images.reshape(len(bad), 3, size, size), bad
        return images.reshape(len(bad), size, size, 3).permute(0, 3, 1, 2), bad

    def _mark_undecodable(self) -> bool:
        """Find the pictures that made DALI fail; return whether there are any."""
        found = False
        for batch in self._under_way:
            for number, jpeg in enumerate(batch.jpegs):
                if not batch.bad[number] and not _decodes(jpeg):
                    batch.bad[number] = found = True
        return found

    def close(self) -> None:
        """Stop DALI's threads and let go of its buffers."""
        self._pipeline = None


class _Batch:
    """A batch in DALI's hands."""

    def __init__(self, jpegs: list[np.ndarray], matrices: np.ndarray, bad: np.ndarray) -> None:
        self.jpegs, self.matrices, self.bad = jpegs, matrices, bad


def _whole(jpeg: np.ndarray) -> bool:
    return bytes(jpeg[:2]) == b"\xff\xd8" and bytes(jpeg[-2:]) == b"\xff\xd9"


def _decodes(jpeg: np.ndarray) -> bool:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
        if height * width <= LARGEST:
            simplejpeg.decode_jpeg(jpeg, "RGB")
            return True
    except ValueError:
        pass
    return False
