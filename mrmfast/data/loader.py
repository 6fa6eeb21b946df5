"""Images joined with genetics by participant, in the order of the sampler, at the speed of decoding.

A background thread computes the order, reads bytes and gathers genetics ahead of training. The image backend decodes
and warps in its own threads. Unreadable samples are skipped: the ranks exchange the unreadable samples of a step before
the step is returned, and each rank builds the step again without them. The order is therefore the same for every number
of ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import numpy as np
import torch

from mrmfast.arithmetic import ceil_div
from mrmfast.batch import Batch, ViewSpec
from mrmfast.data.dataset import DataConfig, Dataset, make_sampler
from mrmfast.data.images.augment import draw_matrices, draw_photometric, plain_view, resolve_views
from mrmfast.data.images.backend import DecodeRequest, DecodeSpec, Images, Pixels, open_images
from mrmfast.data.reader import ShardReader
from mrmfast.data.sampling.sampler import Slice
from mrmfast.data.step import Step, without_bad
from mrmfast.data.threads import decode_threads
from mrmfast.errors import UserError
from mrmfast.meters import Meters

SPARE_SHARDS = 8  # beyond a window, for batches that span two windows
OPEN_SHARDS = 512  # maximum number of memory maps in local mode; far below the system's limits
AHEAD = 4  # shards fetched ahead per concurrent request
Agree = Callable[[frozenset[int]], frozenset[int]]


class Loader:
    """The micro-batches of one rank, from any position of the stream.

    Parameters
    ----------
    dataset : Dataset
    config : DataConfig
    seed : int
        Order and augmentation are functions of it.
    batch : int
        Global batch: samples per optimiser step over all ranks.
    micro_batch : int
        Samples per forward pass of a rank.
    rank, world : int
    device : torch.device
    views : tuple of ViewSpec
        Views of each sample; one view without changes by default.
    agree : callable, optional
        Takes the samples of a step that this rank could not read, returns those of all ranks. Called once per step, in
        the same order on every rank. The default is for a single rank.
    meters : Meters, optional
        Times the stages read, decode, augment and join; the source times fetch.

    Attributes
    ----------
    skipped_samples : dict of int to str
        Unreadable samples -> their keys; the same on all ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        *,
        seed: int,
        batch: int,
        micro_batch: int,
        rank: int,
        world: int,
        device: torch.device,
        views: tuple[ViewSpec, ...] = (ViewSpec(),),
        agree: Agree | None = None,
        meters: Meters | None = None,
    ) -> None:
        self.dataset, self.config, self.seed, self.device = dataset, config, seed, device
        self.batch, self.micro_batch, self.rank, self.world = batch, micro_batch, rank, world
        self.agree = agree or (lambda unreadable: unreadable)
        self.meters = meters or dataset.source.meters
        self.sampler = make_sampler(dataset, config, seed)
        self.views = resolve_views(views, size=config.image_size, rotation=config.rotation, flip=config.flip)
        self._masks = dataset.targets.masks if dataset.targets is not None else ()
        self.skipped_samples: dict[int, str] = {}

    def batches(self, position: int, end: int | None = None) -> Generator[Batch]:
        """Yield this rank's micro-batches from the step that begins at stream position `position`.

        Parameters
        ----------
        position : int
            ``end`` of the last batch; 0 at the start of a run.
        end : int, optional
            Position after the last batch, which may be smaller; by default the stream has no end.

        Yields
        ------
        Batch
            Packed genetics on the CPU (in pinned memory for a GPU); images on the device of the backend.

        Raises
        ------
        UserError
            A shard cannot be fetched, or more images are unreadable than ``config.unreadable`` allows.
        """
        windows = self.sampler.open_shards(self.world)
        limit = int(min(OPEN_SHARDS, windows + SPARE_SHARDS))
        reader = ShardReader(self.dataset.source, self.dataset.manifest.shards, self.dataset.table, self.meters, limit)
        try:
            while end is None or position < end:
                # The pipeline restarts at the step of each newly skipped sample. That is slow, but rare.
                position = yield from self._until_unreadable(position, end, reader)
        finally:
            reader.close()

    def _until_unreadable(self, position: int, end: int | None, reader: ShardReader) -> Generator[Batch, None, int]:
        """Yield micro-batches up to a step with an unreadable image; return the start of that step, or the end."""
        under_way: deque[Step] = deque()
        steps = self._steps(position, end, reader)

        def feed() -> DecodeRequest:
            step = next(steps)
            under_way.append(step)
            return self._request(reader, step.piece, self.views)

        images = self._images(
            feed,
            self.views,
            ceil_div(self.batch, self.world),
            decode_threads(self.config.threads),
            self.config.prefetch,
            self.config.pixels,
        )
        try:
            while end is None or position < end:
                decoded = images.run()
                step = under_way.popleft()
                unreadable = self.agree(frozenset(step.piece.sample[decoded.bad].tolist()))
                if unreadable:
                    self._skip(unreadable)
                    return step.start
                yield from step.batches(decoded, self._keys(step.piece), self.micro_batch)
                position = step.end
            return position
        finally:
            images.close()

    def preview(self, count: int) -> Batch:
        """Return up to `count` samples of the first epoch without augmentation, for figures; the same on every rank."""
        piece = self.sampler.take(0, min(count, len(self.sampler)), self.skipped_samples.keys())
        reader = ShardReader(
            self.dataset.source, self.dataset.manifest.shards, self.dataset.table, self.meters, OPEN_SHARDS
        )
        views = tuple(plain_view(view) for view in self.views)
        images = self._images(lambda: self._request(reader, piece, views), views, len(piece), 1, 1, "uint8")
        try:
            decoded = images.run()
        finally:
            images.close()
            reader.close()
        piece = piece[np.flatnonzero(~decoded.bad)]
        step = self._step(0, piece.end, piece, views)
        (batch,) = step.batches(without_bad(decoded), self._keys(piece), count)
        return batch

    def _images(
        self,
        feed: Callable[[], DecodeRequest],
        views: tuple[ViewSpec, ...],
        batch: int,
        threads: int,
        depth: int,
        pixels: Pixels,
    ) -> Images:
        spec = DecodeSpec(
            views=views,
            batch=batch,
            stored_size=self.dataset.manifest.image_size,
            device=self.device,
            threads=threads,
            depth=depth,
            pixels=pixels,
            mask_channels=tuple(mask.channels for mask in self._masks),
        )
        return open_images(self.config.backend, feed, spec, self.meters)

    def _steps(self, position: int, end: int | None, reader: ShardReader) -> Iterator[Step]:
        """Yield this rank's part of each global batch, and fetch shards ahead."""
        prefetched = position
        while end is None or position < end:
            whole = self.sampler.take(position, self.batch, self.skipped_samples.keys())
            if end is not None and whole.end > end:
                whole = replace(whole[whole.position < end], end=end)
            piece = self.sampler.share(whole, self.rank, self.world)
            if position >= prefetched:
                count = self._entries_ahead()
                reader.prefetch(self.sampler.shards_ahead(position, count, self.rank, self.world, self.batch))
                prefetched = position + max(self.batch, count // 2)
            yield self._step(position, whole.end, piece, self.views)
            position = whole.end

    def _entries_ahead(self) -> int:
        """Return the number of stream entries to fetch shards for: AHEAD shards per concurrent request."""
        per_shard = max(1, self.dataset.manifest.samples // len(self.dataset.manifest.shards))
        shards = AHEAD * self.dataset.source.config.requests * self.world
        return min(len(self.sampler), per_shard * shards) // self.batch * self.batch + self.batch

    def _request(self, reader: ShardReader, piece: Slice, views: tuple[ViewSpec, ...]) -> DecodeRequest:
        """Return the bytes of a slice, and the warp matrices of its views."""
        matrices = tuple(draw_matrices(piece, view, seed=self.seed, number=number) for number, view in enumerate(views))
        masks = tuple(reader.read_masks(piece.sample, mask) for mask in self._masks)
        return DecodeRequest(reader.read(piece.sample), matrices, masks)

    def _keys(self, piece: Slice) -> list[str]:
        return self.dataset.table.key[piece.sample].tolist()

    def _step(self, start: int, end: int, piece: Slice, views: tuple[ViewSpec, ...]) -> Step:
        """Join a slice with its packed genetics, its labels and its photometric parameters."""
        dataset, rows = self.dataset, self.dataset.genome_rows[piece.sample]
        with self.meters.time("join", len(piece)):
            packed = dataset.store.gather(rows) if dataset.store is not None else []
            photometric = [
                torch.from_numpy(draw_photometric(piece, view.photometric, seed=self.seed, number=number))
                if view.photometric is not None and view.photometric.changes
                else None
                for number, view in enumerate(views)
            ]
            target = None if dataset.targets is None else dataset.targets.of(piece.sample)
            tensors = [torch.from_numpy(part) for part in packed]
            step = Step(start, end, piece, tensors, torch.from_numpy(rows >= 0), photometric, target)
            if self.device.type == "cuda":
                step = step.pinned()
            return step

    def _skip(self, unreadable: frozenset[int]) -> None:
        """Add unreadable samples to the skipped samples.

        Raises
        ------
        UserError
            More samples are skipped than ``config.unreadable`` allows.
        """
        table, limit = self.dataset.table, self.config.unreadable
        self.skipped_samples.update({sample: str(table.key[sample]) for sample in sorted(unreadable)})
        self.meters.count("skipped_samples", len(unreadable))
        if len(self.skipped_samples) > limit * len(self.dataset.selected):
            sample = min(unreadable)
            mask = " with readable masks" if self._masks else ""
            raise UserError(
                f"sample {table.key[sample]} is not a readable JPEG{mask}; "
                f"{len(self.skipped_samples)} of {len(self.dataset.selected)} images cannot be read, more than "
                f"data.unreadable={limit:g} allows: copy the dataset again, or preprocess it again"
            )
