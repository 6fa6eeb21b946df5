"""The DALI graph: one decode, one warp per view, nearest neighbour for masks. The only file that imports DALI.

One graph serves both kinds of machine. On a GPU the decoder is ``mixed`` and the other operators run on the GPU.
Without a GPU, the same operators run on the CPU (``device_id=None``). Crops, angles and flips are inputs (matrices), so
the image is a function of (seed, epoch, sample, view) for every backend.
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
from mrmfast.data.images.backend import FUSED, DecodedBatch, DecodeRequest, DecodeSpec
from mrmfast.data.images.masks import UNKNOWN, decode_mask, mask_shape
from mrmfast.formats.jpeg import LARGEST, decode_jpeg, jpeg_ends
from mrmfast.meters import Meters

DECODER = {False: "cpu", True: "mixed"}  # on a GPU the CPU parses and the GPU decodes
Feed = Callable[[], tuple[Any, ...]]


def reduces(spec: DecodeSpec) -> list[bool]:
    """Return per view whether images are averaged down to a side that depends on their crop."""
    return [view.crop is not None and spec.stored_size > FUSED * (view.size or 0) for view in spec.views]


def build_graph(feed: Feed, spec: DecodeSpec, *, gpu: bool) -> list[DataNode]:
    """Add the operators to the current DALI pipeline, for a GPU or a CPU.

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
        DALI refuses the arguments of an operator; the error needs no GPU.
    """
    types: Any = dali_types  # its members are made at run time
    views, masks = len(spec.views), len(spec.mask_channels)
    kinds = [types.UINT8, *[types.FLOAT] * (views + sum(reduces(spec))), *[types.UINT8] * masks, *[types.FLOAT] * masks]
    inputs = list(fn.external_source(source=feed, num_outputs=len(kinds), dtype=kinds))
    # Pixels as they are stored: like the CPU path, this path ignores the EXIF orientation.
    decoded: Any = fn.decoders.image(
        inputs.pop(0), device=DECODER[gpu], output_type=types.RGB, adjust_orientation=False
    )
    # Matrices and sides stay on the CPU, also on a GPU: DALI takes named arguments from the CPU only.
    matrices, inputs = inputs[:views], inputs[views:]
    outputs = []
    for view, matrix, reduced in zip(spec.views, matrices, reduces(spec), strict=True):
        size, images = (view.size, view.size), decoded
        if reduced:
            side = inputs.pop(0)
            images = fn.resize(decoded, resize_x=side, resize_y=side, interp_type=types.INTERP_LINEAR, antialias=True)
        elif view.crop is None and spec.stored_size != view.size:
            images = fn.resize(decoded, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        images = fn.warp_affine(images, matrix=matrix, size=size, fill_value=0, interp_type=types.INTERP_LINEAR)
        if spec.pixels == "float32":
            mean, std = ([255 * value for value in values] for values in (PIXEL_MEAN, PIXEL_STD))
            images = fn.crop_mirror_normalize(images, dtype=types.FLOAT, output_layout="CHW", mean=mean, std=std)
        outputs.append(images)
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
        # Batches in DALI's pipeline, and batches to feed again after a failure.
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
                # DALI would wrap the error and drop earlier batches. run() returns these first, then raises the error.
                self._failed = error
                raise StopIteration from None
            batch = BatchInDALI(request, self._spec.mask_channels)
        self._under_way.append(batch)
        jpegs = [self._black if bad else jpeg for jpeg, bad in zip(batch.jpegs, batch.bad, strict=True)]
        return (jpegs, *self._view_inputs(batch.request.matrices), *self._mask_inputs(batch))

    def _view_inputs(self, matrices: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Return the warp matrices of all views, then the sides of the views whose images are averaged down."""
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
        """Return the PNGs, then the matrices for masks of their sizes; a missing mask is one pixel."""
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
                assert self._failed is not None, "the stream ends only after an error of the source"
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
        """Copy an output of DALI on the current stream; DALI frees its memory in the order of that stream."""
        if not shape[0]:  # in the last step a rank may have no sample, and DALI's empty batch has no shape
            return torch.empty(shape, dtype=dtype, device=self._spec.device)
        return torch.from_dlpack(output.as_tensor()).clone().reshape(shape)

    def _mark_undecodable(self) -> bool:
        """Mark the samples whose image or mask made DALI fail; return whether there are any.

        The CPU's decoder decides, so that all backends refuse the same samples. If it decodes all of them, those with
        damage inside the compressed data are replaced by what it decodes.
        """
        numbered = [(batch, number) for batch in self._under_way for number in np.flatnonzero(~batch.bad).tolist()]
        marked = [at for at in numbered if not (_decodes(at[0].request.jpegs[at[1]]) and at[0].masks_decode(at[1]))]
        for batch, number in marked:
            batch.bad[number] = True
        return bool(marked) or any([batch.replace_damaged(number) for batch, number in numbered])

    def close(self) -> None:
        """Stop DALI's threads and release its buffers."""
        self._pipeline = None


class BatchInDALI:
    """A batch in DALI's pipeline.

    Parameters
    ----------
    request : DecodeRequest
    channels : tuple of int
        Channels of each mask.
    """

    def __init__(self, request: DecodeRequest, channels: tuple[int, ...]) -> None:
        self.request, self._channels = request, channels
        self.jpegs = list(request.jpegs)
        self.bad = np.array([not _is_sound(jpeg) for jpeg in request.jpegs], dtype=bool)
        for masks, count in zip(request.masks, channels, strict=True):
            for number, png in enumerate(masks):
                shape = (0, 0, count) if png is None else mask_shape(png)
                self.bad[number] |= shape is None or shape[2] != count

    def replace_damaged(self, number: int) -> bool:
        """Replace a JPEG that libjpeg warns of by a lossless PNG of what libjpeg decodes; return whether it was one."""
        jpeg = self.request.jpegs[number]
        if self.jpegs[number] is not jpeg:
            return False  # DALI failed on the replacement too
        try:
            simplejpeg.decode_jpeg(jpeg, "RGB", strict=True)
        except ValueError:
            pixels = decode_jpeg(jpeg, "BGR", tolerant=True)
            self.jpegs[number] = cv2.imencode(".png", pixels)[1]
            return True
        return False

    def masks_decode(self, number: int) -> bool:
        """Return whether all masks of a sample can be decoded."""
        pngs = (masks[number] for masks in self.request.masks)
        return all(
            png is None or decode_mask(png, count) is not None for png, count in zip(pngs, self._channels, strict=True)
        )


def _is_sound(jpeg: np.ndarray) -> bool:
    """Whether a JPEG has an end marker and a header of an allowed size, without decoding it."""
    if not jpeg_ends(jpeg):
        return False
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return False
    return bool(height * width <= LARGEST)


def _decodes(jpeg: np.ndarray) -> bool:
    try:
        decode_jpeg(jpeg, tolerant=True)
    except ValueError:
        return False
    return True
