"""The DALI graph: one decode, one warp per view, nearest neighbour for masks. The only file that imports DALI.

One graph for both kinds of machine: on a GPU the decoder is ``mixed`` and the rest runs there; without one, the same
operators run on the CPU (``device_id=None``). Crops, angles and flips come in as matrices, so the image is a function
of (seed, epoch, sample, view) whatever the backend.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from nvidia.dali import Pipeline, fn
from nvidia.dali import types as dali_types
from nvidia.dali.data_node import DataNode
from torch import Tensor

from mrmfast.batch import PIXEL_MEAN, PIXEL_STD
from mrmfast.data.images.augment import needed_side
from mrmfast.data.images.backend import FUSED, LARGEST, DecodedBatch, DecodeRequest, DecodeSpec
from mrmfast.data.images.masks import UNKNOWN, decode_mask, mask_shape
from mrmfast.meters import Meters

DECODER = {False: "cpu", True: "mixed"}  # on a GPU the CPU parses and the GPU decodes
Feed = Callable[[], tuple[Any, ...]]


def reduces(spec: DecodeSpec) -> list[bool]:
    """Return per view whether some images are averaged down to a side of their own, by the size of their crop."""
    return [view.crop is not None and spec.stored_size > FUSED * (view.size or 0) for view in spec.views]


def build_graph(feed: Feed, spec: DecodeSpec, *, gpu: bool) -> list[DataNode]:
    """Add the operators to the current DALI pipeline; the operators of a GPU and of a CPU are built by the same lines.

    Parameters
    ----------
    feed : callable
        Returns, once per batch of B: JPEG bytes (list of uint8 arrays); per view, warp matrices (float32, (B, 2, 3));
        per view of :func:`reduces`, the side to average to (float32, (B,)); per mask, PNG bytes (list of uint8 arrays);
        per mask, warp matrices.
    spec : DecodeSpec
    gpu : bool
        Decode with the ``mixed`` decoder; every later operator follows its input to the GPU.

    Returns
    -------
    list of DataNode
        Per view, (B, 3, size, size) float32 or (B, size, size, 3) uint8; per mask, (B, size, size, channels) uint8.

    Raises
    ------
    ValueError
        An operator is given what DALI does not take; a GPU is not needed to see that.
    """
    types: Any = dali_types  # its members are made at run time
    views, masks = len(spec.views), len(spec.mask_channels)
    kinds = [types.UINT8, *[types.FLOAT] * (views + sum(reduces(spec))), *[types.UINT8] * masks, *[types.FLOAT] * masks]
    inputs = list(fn.external_source(source=feed, num_outputs=len(kinds), dtype=kinds))
    # Pixels as they are stored: the CPU path does not turn them by an EXIF tag, so this path does not either.
    images: Any = fn.decoders.image(inputs.pop(0), device=DECODER[gpu], output_type=types.RGB, adjust_orientation=False)
    # Matrices and sides stay on the CPU, also on a GPU: DALI takes named arguments from there only.
    matrices, inputs = inputs[:views], inputs[views:]
    outputs = []
    for view, matrix, reduced in zip(spec.views, matrices, reduces(spec), strict=True):
        size, warped = (view.size, view.size), images
        if reduced:
            side = inputs.pop(0)
            warped = fn.resize(images, resize_x=side, resize_y=side, interp_type=types.INTERP_LINEAR, antialias=True)
        elif view.crop is None and spec.stored_size != view.size:
            warped = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        warped = fn.warp_affine(warped, matrix=matrix, size=size, fill_value=0, interp_type=types.INTERP_LINEAR)
        if spec.pixels == "float32":
            mean, std = ([255 * value for value in values] for values in (PIXEL_MEAN, PIXEL_STD))
            warped = fn.crop_mirror_normalize(warped, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std)
        outputs.append(warped)
    for pngs, matrix in zip(inputs[:masks], inputs[masks:], strict=True):
        mask: Any = fn.decoders.image(pngs, device="cpu", output_type=types.ANY_DATA, adjust_orientation=False)
        if gpu:
            mask = mask.gpu()
        size = (spec.sizes[0], spec.sizes[0])
        outputs.append(fn.warp_affine(mask, matrix=matrix, size=size, fill_value=UNKNOWN, interp_type=types.INTERP_NN))
    return outputs


class DALIImages:
    """Decode and warp in DALI; the contract and the parameters are those of :mod:`mrmfast.data.images.backend`."""

    def __init__(self, source: Callable[[], DecodeRequest], spec: DecodeSpec, meters: Meters) -> None:
        self._source, self._spec, self._meters = source, spec, meters
        self._gpu = spec.device.type == "cuda"
        self._settings: dict[str, Any] = {
            "batch_size": spec.batch,
            "num_threads": spec.threads,
            "device_id": None,
            "prefetch_queue_depth": spec.depth,
        }
        if self._gpu:
            self._settings["device_id"] = spec.device.index or 0
        black = np.zeros((spec.stored_size, spec.stored_size, 3), dtype=np.uint8)
        self._black = np.frombuffer(simplejpeg.encode_jpeg(black), dtype=np.uint8)
        self._unknown = [
            cv2.imencode(".png", np.full((1, 1, channels), UNKNOWN, np.uint8))[1] for channels in spec.mask_channels
        ]
        # Batches that DALI works on, and those that it has to be given again after a failure.
        self._under_way: deque[BatchInDALI] = deque()
        self._again: deque[BatchInDALI] = deque()
        self._failed: BaseException | None = None
        self._pipeline: Pipeline | None = self._build()

    def _build(self) -> Pipeline:
        pipeline = Pipeline(**self._settings)
        with pipeline:
            pipeline.set_outputs(*build_graph(self._feed, self._spec, gpu=self._gpu))
        pipeline.build()
        return pipeline

    def _feed(self) -> tuple[Any, ...]:
        """Return the inputs of the graph for the next batch: see :func:`build_graph`."""
        if self._again:
            batch = self._again.popleft()
        else:
            if self._failed is not None:
                raise StopIteration
            try:
                request = self._source()
            except BaseException as error:
                # DALI would wrap it, and drop the batches before it: they come first, then this.
                self._failed = error
                raise StopIteration from None
            batch = BatchInDALI(request, self._spec.mask_channels)
        self._under_way.append(batch)
        jpegs = [self._black if bad else jpeg for jpeg, bad in zip(batch.request.jpegs, batch.bad, strict=True)]
        return (jpegs, *self._view_inputs(batch.request.matrices), *self._mask_inputs(batch))

    def _view_inputs(self, matrices: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Return the matrices for the image that each view is warped from, then the sides of those averaged down."""
        scaled, sides = [], []
        for matrix, view, reduced in zip(matrices, self._spec.views, reduces(self._spec), strict=True):
            if view.crop is None:
                scaled.append(matrix)
                continue
            assert view.size is not None
            stored = np.full(len(matrix), self._spec.stored_size)
            needed = needed_side(matrix, view.size)
            side = np.where(stored > FUSED * needed, needed, stored)
            scaled.append(matrix * (side / view.size)[:, None, None].astype(np.float32))
            if reduced:
                sides.append(side.astype(np.float32))
        return scaled + sides

    def _mask_inputs(self, batch: BatchInDALI) -> list[Any]:
        """Return the PNGs, then the matrices for masks of their sizes; a mask of one pixel where there is none."""
        pngs, matrices = [], []
        for masks, unknown in zip(batch.request.masks, self._unknown, strict=True):
            files = [unknown if png is None or bad else png for png, bad in zip(masks, batch.bad, strict=True)]
            scales = np.array([(mask_shape(png) or (1, 1, 1))[1::-1] for png in files], np.float32).reshape(-1, 2, 1)
            pngs.append(files)
            matrices.append(batch.request.matrices[0] * (scales / np.float32(self._spec.sizes[0])))
        return pngs + matrices

    def run(self) -> DecodedBatch:
        """Wait for the next batch: see :class:`mrmfast.data.images.backend.Images`."""
        assert self._pipeline is not None, "closed"
        while True:
            try:
                with self._meters.time("decode", self._settings["batch_size"]):
                    outputs: Any = self._pipeline.run()
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
        views = []
        for output, size in zip(outputs, self._spec.sizes, strict=False):
            if self._spec.pixels == "float32":
                views.append(self._copy(output, (len(bad), 3, size, size), torch.float32))
            else:
                views.append(self._copy(output, (len(bad), size, size, 3), torch.uint8).permute(0, 3, 1, 2))
        side = self._spec.sizes[0]
        masks = [
            self._copy(output, (len(bad), side, side, channels), torch.uint8).permute(0, 3, 1, 2)
            for output, channels in zip(outputs[len(views) :], self._spec.mask_channels, strict=True)
        ]
        return DecodedBatch(tuple(views), bad, torch.cat(masks, 1).contiguous() if masks else None)

    def _copy(self, output: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Copy an output of DALI, on the current stream: DALI frees its own memory in the order of that stream."""
        if not shape[0]:  # a rank without a sample in the last step: an empty batch of DALI has no shape
            return torch.empty(shape, dtype=dtype, device=self._spec.device)
        return torch.from_dlpack(output.as_tensor()).clone().reshape(shape)

    def _mark_undecodable(self) -> bool:
        """Find the images and masks that made DALI fail; return whether there are any."""
        found = False
        for batch in self._under_way:
            for number, jpeg in enumerate(batch.request.jpegs):
                if not batch.bad[number] and not (_decodes(jpeg) and batch.masks_decode(number)):
                    batch.bad[number] = found = True
        return found

    def close(self) -> None:
        """Stop DALI's threads and release its buffers."""
        self._pipeline = None


class BatchInDALI:
    """A batch in DALI's hands.

    Parameters
    ----------
    request : DecodeRequest
    channels : tuple of int
        Of each mask.
    """

    def __init__(self, request: DecodeRequest, channels: tuple[int, ...]) -> None:
        self.request, self._channels = request, channels
        # Decoders fill the rest of a truncated JPEG with grey and report nothing, so look for both end markers.
        self.bad = np.array([not _whole(jpeg) for jpeg in request.jpegs], dtype=bool)
        for masks, count in zip(request.masks, channels, strict=True):
            for number, png in enumerate(masks):
                shape = (0, 0, count) if png is None else mask_shape(png)
                self.bad[number] |= shape is None or shape[2] != count

    def masks_decode(self, number: int) -> bool:
        """Return whether all masks of a sample can be decoded."""
        pngs = (masks[number] for masks in self.request.masks)
        return all(
            png is None or decode_mask(png, count) is not None for png, count in zip(pngs, self._channels, strict=True)
        )


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
