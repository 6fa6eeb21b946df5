"""Images joined with genetics by participant, in the order of the plan, at the speed of decoding.

One thread ahead of training draws the order, reads bytes and gathers genetics; the image backend decodes and warps in
its own threads. A picture that cannot be read is set aside: all ranks learn of it before the step is handed out, and
the step is made again without it, so the order stays one and the same for every number of ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mrmfast.batch import Batch
from mrmfast.data.dataset import DataConfig, Dataset, make_plan
from mrmfast.data.images.augment import draw_matrices
from mrmfast.data.images.backend import Fed, Images, Pixels, open_images
from mrmfast.data.reader import ShardReader
from mrmfast.data.sampling.sampler import Slice
from mrmfast.data.threads import decode_threads
from mrmfast.errors import UserError
from mrmfast.meters import Meters

SPARE_SHARDS = 8  # beyond a window, for batches that cross from one to the next
OPEN_SHARDS = 512  # maps at a time without a window; far below the system's limits
AHEAD = 4  # shards fetched ahead per request under way
Agree = Callable[[frozenset[int]], frozenset[int]]


@dataclass(frozen=True)
class Step:
    """A rank's part of a global batch on its way through the image backend.

    Attributes
    ----------
    start, end : int
        Stream positions around the global batch.
    piece : Slice
        This rank's samples.
    packed : list of Tensor
        Their genetics, packed.
    present : Tensor, bool, (n, modalities)
    """

    start: int
    end: int
    piece: Slice
    packed: list[Tensor]
    present: Tensor


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
    agree : callable, optional
        Given the samples that this rank could not read in a step, returns those of all ranks; called once a step, in
        the same order on every rank. By default there are no other ranks.
    meters : Meters, optional
        Stages read, decode, augment and join are counted here; the source counts fetch.

    Attributes
    ----------
    set_aside : dict of int to str
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
        agree: Agree | None = None,
        meters: Meters | None = None,
    ) -> None:
        self.dataset, self.config, self.seed, self.device = dataset, config, seed, device
        self.batch, self.micro_batch, self.rank, self.world = batch, micro_batch, rank, world
        self.agree = agree or (lambda found: found)
        self.meters = meters or dataset.source.meters
        self.plan = make_plan(dataset, config, seed)
        self.set_aside: dict[int, str] = {}

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
                # Anew from the start of a step after each image that is set aside; that is rare, so it may be slow.
                position = yield from self._until_unreadable(position, end, reader)
        finally:
            reader.close()

    def _until_unreadable(self, position: int, end: int | None, reader: ShardReader) -> Generator[Batch, None, int]:
        """Yield micro-batches; return the start of the step that holds an unreadable image, or the end."""
        under_way: deque[Step] = deque()
        steps = self._steps(position, end, reader)

        def feed() -> Fed:
            step = next(steps)
            under_way.append(step)
            return self._fed(reader, step.piece, self.config.rotation, self.config.flip)

        images = self._images(
            feed,
            -(-self.batch // self.world),
            decode_threads(self.config.threads),
            self.config.prefetch,
            self.config.pixels,
        )
        try:
            while end is None or position < end:
                image_BCHW, bad = images.run()
                step = under_way.popleft()
                found = self.agree(frozenset(step.piece.sample[bad].tolist()))
                if found:
                    self._put_aside(found)
                    return step.start
                yield from self._split(image_BCHW, step)
                position = step.end
            return position
        finally:
            images.close()

    def preview(self, count: int) -> Batch:
        """Return up to `count` samples of the first epoch without augmentation, for figures; the same on every rank."""
        piece = self.plan.take(0, min(count, len(self.plan)), self.set_aside.keys())
        reader = ShardReader(
            self.dataset.source, self.dataset.manifest.shards, self.dataset.table, self.meters, OPEN_SHARDS
        )
        images = self._images(lambda: self._fed(reader, piece, 0.0, 0.0), len(piece), 1, 1, "uint8")
        try:
            image_BCHW, bad = images.run()
        finally:
            images.close()
            reader.close()
        good = np.flatnonzero(~bad)
        packed, present = self._join(piece[good])
        step = Step(0, piece.end, piece[good], packed, present)
        (batch,) = self._split(image_BCHW[torch.from_numpy(good)], step, count)
        return batch

    def _images(self, feed: Callable[[], Fed], batch: int, threads: int, depth: int, pixels: Pixels) -> Images:
        return open_images(
            self.config.backend,
            feed,
            batch=batch,
            stored_size=self.dataset.manifest.image_size,
            size=self.config.image_size,
            device=self.device,
            threads=threads,
            depth=depth,
            meters=self.meters,
            pixels=pixels,
        )

    def _steps(self, position: int, end: int | None, reader: ShardReader) -> Iterator[Step]:
        """Draw this rank's part of one global batch after another, and fetch ahead of it."""
        looked = position
        while end is None or position < end:
            whole = self.plan.take(position, self.batch, self.set_aside.keys())
            if end is not None and whole.end > end:
                whole = replace(whole[whole.position < end], end=end)
            piece = self.plan.share(whole, self.rank, self.world)
            if position >= looked:
                reach = self._reach()
                reader.prefetch(self.plan.shards_ahead(position, reach, self.rank, self.world, self.batch))
                looked = position + max(self.batch, reach // 2)
            packed, present = self._join(piece)
            yield Step(position, whole.end, piece, packed, present)
            position = whole.end

    def _reach(self) -> int:
        """Return how many entries of the stream to fetch ahead for: AHEAD shards for each request under way."""
        per_shard = max(1, self.dataset.manifest.samples // len(self.dataset.manifest.shards))
        shards = AHEAD * self.dataset.source.config.requests * self.world
        return min(len(self.plan), per_shard * shards) // self.batch * self.batch + self.batch

    def _fed(self, reader: ShardReader, piece: Slice, rotation: float, flip: float) -> Fed:
        """Return JPEG bytes, warp matrices and keys of a slice."""
        matrices = draw_matrices(piece, seed=self.seed, rotation=rotation, flip=flip, size=self.config.image_size)
        return reader.read(piece.sample), matrices, self._keys(piece)

    def _keys(self, piece: Slice) -> list[str]:
        return self.dataset.table.key[piece.sample].tolist()

    def _join(self, piece: Slice) -> tuple[list[Tensor], Tensor]:
        """Gather the genetics of a slice, packed, and who has which."""
        rows = self.dataset.genome_rows[piece.sample]
        with self.meters.time("join", len(piece)):
            packed = self.dataset.store.gather(rows) if self.dataset.store is not None else []
            tensors = [torch.from_numpy(part) for part in (*packed, rows >= 0)]
            if self.device.type == "cuda":
                # From pageable memory a copy to the GPU makes this process wait for all work queued before it.
                tensors = [tensor.pin_memory() for tensor in tensors]
            return tensors[:-1], tensors[-1]

    def _split(self, image_BCHW: Tensor, step: Step, size: int | None = None) -> Iterator[Batch]:
        size = size or self.micro_batch
        for start in range(0, len(step.piece), size):
            part = slice(start, start + size)
            yield Batch(
                image_BCHW=image_BCHW[part],
                packed=tuple(packed[part] for packed in step.packed),
                present=step.present[part],
                keys=tuple(self._keys(step.piece[part])),
                epochs=tuple(step.piece.epoch[part].tolist()),
                end=step.end,
            )

    def _put_aside(self, found: frozenset[int]) -> None:
        """Record unreadable images.

        Raises
        ------
        UserError
            They are too many.
        """
        table, limit = self.dataset.table, self.config.unreadable
        self.set_aside.update({sample: str(table.key[sample]) for sample in sorted(found)})
        self.meters.count("set_aside", len(found))
        if len(self.set_aside) > limit * len(self.dataset.selected):
            sample = min(found)
            raise UserError(
                f"sample {table.key[sample]} is not a readable JPEG; "
                f"{len(self.set_aside)} of {len(self.dataset.selected)} images cannot be read, more than "
                f"data.unreadable={limit:g} allows: copy the dataset again, or preprocess it anew"
            )
