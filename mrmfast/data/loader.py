"""Images joined with genetics by participant, in the order of the plan, at the speed of decoding.

One thread ahead of training draws the order, reads bytes and gathers genetics; the image backend decodes and warps in
its own threads. An image that cannot be read is skipped: all ranks learn of it before the step is handed out, and
the step is made again without it, so the order stays one and the same for every number of ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import numpy as np
import torch

from mrmfast.batch import Batch, ViewSpec
from mrmfast.data.dataset import DataConfig, Dataset, make_plan
from mrmfast.data.images.augment import draw_matrices, draw_photometric, plain_view, resolve_views
from mrmfast.data.images.backend import DecodeRequest, DecodeSpec, Images, Pixels, open_images
from mrmfast.data.reader import ShardReader
from mrmfast.data.sampling.sampler import Slice
from mrmfast.data.step import Step, without_bad
from mrmfast.data.threads import decode_threads
from mrmfast.errors import UserError
from mrmfast.meters import Meters

SPARE_SHARDS = 8  # beyond a window, for batches that cross from one to the next
OPEN_SHARDS = 512  # maps at a time without a window; far below the system's limits
AHEAD = 4  # shards fetched ahead per request under way
Agree = Callable[[frozenset[int]], frozenset[int]]


class Loader:
    """Micro-batches of one rank, from any position of the stream.

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
        The images that are made of each sample; one plain one by default.
    agree : callable, optional
        Given the samples that this rank could not read in a step, returns those of all ranks; called once a step, in
        the same order on every rank. By default there are no other ranks.
    meters : Meters, optional
        Stages read, decode, augment and join are counted here; the source counts fetch.

    Attributes
    ----------
    unreadable : dict of int to str
        Samples that cannot be read -> their keys; the same on all ranks.
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
        self.agree = agree or (lambda found: found)
        self.meters = meters or dataset.source.meters
        self.plan = make_plan(dataset, config, seed)
        self.views = resolve_views(views, size=config.image_size, rotation=config.rotation, flip=config.flip)
        self._masks = dataset.targets.masks if dataset.targets is not None else ()
        self.unreadable: dict[int, str] = {}

    def batches(self, position: int, end: int | None = None) -> Generator[Batch]:
        """Yield this rank's micro-batches from the step that begins at stream position `position`.

        Parameters
        ----------
        position : int
            Where a run stands: the last batch's ``end``, 0 at its start.
        end : int, optional
            Stop at this position, with a smaller last batch; by default the stream has no end.

        Yields
        ------
        Batch
            Genetics on the CPU (in pinned memory for a GPU), still packed; images where the backend works.

        Raises
        ------
        UserError
            A shard cannot be had, or more images cannot be read than ``config.unreadable`` allows.
        """
        windows = self.plan.open_shards(self.world)
        limit = int(min(OPEN_SHARDS, windows + SPARE_SHARDS))
        reader = ShardReader(self.dataset.source, self.dataset.manifest.shards, self.dataset.table, self.meters, limit)
        try:
            while end is None or position < end:
                # Anew from the start of a step after each image that is skipped; that is rare, so it may be slow.
                position = yield from self._until_unreadable(position, end, reader)
        finally:
            reader.close()

    def _until_unreadable(self, position: int, end: int | None, reader: ShardReader) -> Generator[Batch, None, int]:
        """Yield micro-batches; return the start of the step that holds an unreadable image, or the end."""
        under_way: deque[Step] = deque()
        steps = self._steps(position, end, reader)

        def feed() -> DecodeRequest:
            step = next(steps)
            under_way.append(step)
            return self._request(reader, step.piece, self.views)

        images = self._images(
            feed,
            self.views,
            -(-self.batch // self.world),
            decode_threads(self.config.threads),
            self.config.prefetch,
            self.config.pixels,
        )
        try:
            while end is None or position < end:
                decoded = images.run()
                step = under_way.popleft()
                found = self.agree(frozenset(step.piece.sample[decoded.bad].tolist()))
                if found:
                    self._skip_unreadable(found)
                    return step.start
                yield from step.batches(decoded, self._keys(step.piece), self.micro_batch)
                position = step.end
            return position
        finally:
            images.close()

    def preview(self, count: int) -> Batch:
        """Return up to `count` samples of the first epoch without augmentation, for figures; the same on every rank."""
        piece = self.plan.take(0, min(count, len(self.plan)), self.unreadable.keys())
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
        """Draw this rank's part of one global batch after another, and fetch ahead of it."""
        looked = position
        while end is None or position < end:
            whole = self.plan.take(position, self.batch, self.unreadable.keys())
            if end is not None and whole.end > end:
                whole = replace(whole[whole.position < end], end=end)
            piece = self.plan.share(whole, self.rank, self.world)
            if position >= looked:
                reach = self._reach()
                reader.prefetch(self.plan.shards_ahead(position, reach, self.rank, self.world, self.batch))
                looked = position + max(self.batch, reach // 2)
            yield self._step(position, whole.end, piece, self.views)
            position = whole.end

    def _reach(self) -> int:
        """Return how many entries of the stream to fetch ahead for: AHEAD shards for each request under way."""
        per_shard = max(1, self.dataset.manifest.samples // len(self.dataset.manifest.shards))
        shards = AHEAD * self.dataset.source.config.requests * self.world
        return min(len(self.plan), per_shard * shards) // self.batch * self.batch + self.batch

    def _request(self, reader: ShardReader, piece: Slice, views: tuple[ViewSpec, ...]) -> DecodeRequest:
        """Return the bytes of a slice, and how to warp them."""
        matrices = tuple(draw_matrices(piece, view, seed=self.seed, number=number) for number, view in enumerate(views))
        masks = tuple(reader.read_masks(piece.sample, mask) for mask in self._masks)
        return DecodeRequest(reader.read(piece.sample), matrices, masks)

    def _keys(self, piece: Slice) -> list[str]:
        return self.dataset.table.key[piece.sample].tolist()

    def _step(self, start: int, end: int, piece: Slice, views: tuple[ViewSpec, ...]) -> Step:
        """Join a slice with its genetics, packed, its labels, and its changes of colour."""
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

    def _skip_unreadable(self, found: frozenset[int]) -> None:
        """Record unreadable images.

        Raises
        ------
        UserError
            They are too many.
        """
        table, limit = self.dataset.table, self.config.unreadable
        self.unreadable.update({sample: str(table.key[sample]) for sample in sorted(found)})
        self.meters.count("unreadable", len(found))
        if len(self.unreadable) > limit * len(self.dataset.selected):
            sample = min(found)
            mask = " with readable masks" if self._masks else ""
            raise UserError(
                f"sample {table.key[sample]} is not a readable JPEG{mask}; "
                f"{len(self.unreadable)} of {len(self.dataset.selected)} images cannot be read, more than "
                f"data.unreadable={limit:g} allows: copy the dataset again, or preprocess it anew"
            )
