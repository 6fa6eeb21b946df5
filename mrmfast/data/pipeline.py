"""The DALI graph: decode, resize, one warp. The only file that imports DALI.

One graph for both kinds of machine: on a GPU the decoder is ``mixed`` and the rest runs there; without one, the same
operators run on the CPU (``device_id=None``). Angles and flips come in as matrices, so the picture is a function of
(seed, epoch, sample) whatever the backend.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn
from nvidia.dali import types as dali_types
from nvidia.dali.data_node import DataNode
from torch import Tensor

from mrmfast.errors import UserError

Fed = tuple[list[np.ndarray], np.ndarray, list[str]]


class ImagePipeline:
    """Decoded, augmented batches; `depth` of them are worked on in the background.

    Parameters
    ----------
    source : callable
        Called once per batch, in order and ahead of :meth:`run`; returns JPEG bytes (list of B uint8 arrays), warp
        matrices (float32, (B, 2, 3), :func:`mrmfast.data.augment.warp_matrices`) and sample keys for errors.
    batch : int
        B.
    stored_size, size : int
        Side of the images in the shards and of the output, pixels.
    device : torch.device
        Where the batches are wanted.
    threads : int
        CPU threads.
    depth : int
        How many batches are asked for ahead.
    """

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
    ) -> None:
        self._source, self._gpu = source, device.type == "cuda"
        self._under_way: deque[tuple[list[np.ndarray], list[str]]] = deque()
        self._pipeline = Pipeline(
            batch_size=batch,
            num_threads=threads,
            device_id=(device.index or 0) if self._gpu else None,
            prefetch_queue_depth=depth,
        )
        with self._pipeline:
            self._pipeline.set_outputs(self._graph(stored_size, size))
        self._pipeline.build()

    def _graph(self, stored_size: int, size: int) -> DataNode:
        types: Any = dali_types  # its members are made at run time
        jpegs, matrices = fn.external_source(source=self._feed, num_outputs=2, dtype=[types.UINT8, types.FLOAT])
        images: Any = fn.decoders.image(jpegs, device="mixed" if self._gpu else "cpu", output_type=types.RGB)
        if stored_size != size:
            images = fn.resize(images, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True)
        if self._gpu:
            matrices = matrices.gpu()
        return fn.warp_affine(images, matrix=matrices, fill_value=0, interp_type=types.INTERP_LINEAR)

    def _feed(self) -> tuple[list[np.ndarray], np.ndarray]:
        jpegs, matrices, keys = self._source()
        for jpeg, key in zip(jpegs, keys, strict=True):
            # Decoders fill the rest of a truncated JPEG with grey and say nothing, so look for both end markers.
            if bytes(jpeg[:2]) != b"\xff\xd8" or bytes(jpeg[-2:]) != b"\xff\xd9":
                raise _unreadable(key)
        self._under_way.append((jpegs, keys))
        return jpegs, matrices

    def run(self) -> Tensor:
        """Wait for the next batch.

        Returns
        -------
        Tensor, uint8, shape (B, 3, size, size)
            In channels-last memory order, on the device.

        Raises
        ------
        UserError
            An image is not a whole JPEG or cannot be decoded; names the sample's key.
        """
        try:
            output: Any
            (output,) = self._pipeline.run()
        except RuntimeError as error:
            for jpegs, keys in self._under_way:
                for jpeg, key in zip(jpegs, keys, strict=True):
                    if not _decodes(jpeg):
                        raise _unreadable(key) from error
            raise
        self._under_way.popleft()
        # DALI reuses its buffers, so the batch is copied out.
        if self._gpu:
            image_BHWC = torch.from_dlpack(output.as_tensor()).clone()
        else:
            image_BHWC = torch.from_numpy(np.array(output.as_array()))
        return image_BHWC.permute(0, 3, 1, 2)


def _decodes(jpeg: np.ndarray) -> bool:
    from torchvision.io import ImageReadMode, decode_jpeg  # slow to import, and only needed to explain an error

    try:
        decode_jpeg(torch.from_numpy(np.array(jpeg)), mode=ImageReadMode.RGB)
    except RuntimeError:
        return False
    return True


def _unreadable(key: str) -> UserError:
    return UserError(
        f"sample {key} is not a readable JPEG; its shard is damaged: copy the dataset again, or preprocess it anew"
    )
