"""Images joined with genetics by participant, in the order of the plan."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from mrmfast.batch import Batch, GenomeSpec
from mrmfast.data.augment import draw_matrices
from mrmfast.data.fetch import FetchConfig, Source
from mrmfast.data.genome_store import GenomeStore
from mrmfast.data.manifest import Manifest
from mrmfast.data.plan import Plan, Slice, rank_share
from mrmfast.data.shards import SampleTable, read_sample_table
from mrmfast.errors import UserError

if TYPE_CHECKING:
    from mrmfast.data.pipeline import Fed, ImagePipeline


@dataclass(frozen=True)
class DataConfig:
    """Where the data is and how it is fed.

    Attributes
    ----------
    path : str
        Dataset folder or URL (``s3://bucket/prefix``).
    split : {"train", "test", "all"}
        Which participants, by the dataset's split rule.
    modalities : list of str, optional
        Which genetics; all that the dataset has by default, none (``[]``) for images only.
    unmatched : {"error", "drop", "keep"}
        What to do with images whose participant has no genetics at all: stop, leave them out, or train on them with
        filled genetics that carry no loss.
    image_size : int
        Side of the input, pixels.
    rotation : float
        Largest rotation, degrees, drawn uniformly from both directions (paper: 20).
    flip : float
        Probability of a left-right flip (paper: 0.5).
    shuffle_window : int
        0: full shuffle; w: shuffle within windows of w shards, for object stores.
    threads : int
        CPU threads for decoding, per rank.
    prefetch : int
        Micro-batches under way at once.
    cache : str, optional
        Folder for downloaded shards.
    anonymous : bool
        Read a public bucket without credentials.
    fetch : FetchConfig
        Requests, time limits and the cache's size.
    """

    path: str = ""
    split: Literal["train", "test", "all"] = "train"
    modalities: list[str] | None = None
    unmatched: Literal["error", "drop", "keep"] = "error"
    image_size: int = 224
    rotation: float = 20.0
    flip: float = 0.5
    shuffle_window: int = 0
    threads: int = 2
    prefetch: int = 3
    cache: str | None = None
    anonymous: bool = False
    fetch: FetchConfig = field(default_factory=FetchConfig)


@dataclass
class Dataset:
    """An opened dataset, reduced to the samples to train on.

    Attributes
    ----------
    source : Source
    manifest : Manifest
    table : SampleTable
        All samples.
    selected : ndarray of int64
        Rows of `table` in the split (and with genetics, where wanted).
    store : GenomeStore or None
    genome_rows : ndarray of int64, shape (len(table), modalities)
        Rows in the store per sample, -1 where absent.
    """

    source: Source
    manifest: Manifest
    table: SampleTable
    selected: np.ndarray
    store: GenomeStore | None
    genome_rows: np.ndarray

    def genome_spec(self) -> GenomeSpec | None:
        """Describe x_G for the model; None when training on images only."""
        if self.store is None:
            return None
        groups = self.store.groups()
        return GenomeSpec(
            kinds=tuple((m.name, str(m.kind), len(m.features)) for m in self.store.modalities),
            groups=tuple(size for _, _, size in groups),
            group_names=tuple(f"{modality}/{group}" for modality, group, _ in groups),
            fill=torch.from_numpy(self.store.fill()),
        )


def open_dataset(config: DataConfig) -> Dataset:
    """Open a dataset and join images with genetics.

    Raises
    ------
    UserError
        Nothing there, no image in the split, or images without genetics under ``unmatched="error"``.
    """
    if not config.path:
        raise UserError("data.path is empty; give data.path=FOLDER or data.path=s3://BUCKET/PREFIX")
    source = Source(config.path, config.cache, {"anon": True} if config.anonymous else None, config.fetch)
    manifest = source.manifest()
    if not manifest.shards:
        raise UserError(
            f"data.path={config.path}: holds no images yet; run python -m preprocess fundus or pathology into it"
        )
    table = read_sample_table(source.url, source.zarr_store())
    if len(table) != manifest.samples or (len(table) and table.shard.max() >= len(manifest.shards)):
        raise UserError(
            f"{config.path}: dataset.json says {manifest.samples} images in {len(manifest.shards)} shards, the sample "
            "table says otherwise; they belong to different versions: copy the dataset again"
        )
    selected = np.arange(len(table))
    if config.split != "all":
        selected = selected[manifest.splits.training(table.participant.tolist()) == (config.split == "train")]
        if not len(selected):
            raise UserError(f"data.split={config.split}: none of the {len(table)} images is in it; use data.split=all")
    names = sorted(set(manifest.genetics if config.modalities is None else config.modalities))
    if not names:
        return Dataset(source, manifest, table, selected, None, np.empty((len(table), 0), np.int64))
    store = GenomeStore.open(source.url, names, source.zarr_store(), config.cache)
    rows = store.locate(table.participant)
    without = (rows[selected] < 0).all(1)
    if without.all() or (without.any() and config.unmatched == "error"):
        remedy = (
            "do both come from the same id list?"
            if without.all()
            else "leave them out with data.unmatched=drop, or keep them without a genome loss with data.unmatched=keep"
        )
        raise UserError(
            f"{config.path}: {int(without.sum())} of {len(selected)} images belong to participants without genetics; "
            + remedy
        )
    if config.unmatched == "drop":
        selected = selected[~without]
    return Dataset(source, manifest, table, selected, store, rows)


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
        Samples per forward pass of a rank; ``batch`` is a multiple of ``micro_batch * world``.
    rank, world : int
    device : torch.device
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
    ) -> None:
        self.dataset, self.config, self.seed, self.device = dataset, config, seed, device
        self.batch, self.micro_batch = batch, micro_batch
        self.offset, self.share = rank_share(batch, world, rank)
        self.plan = Plan(dataset.selected, dataset.table.shard[dataset.selected], seed, config.shuffle_window)
        self._maps: dict[int, np.memmap] = {}

    def batches(self, position: int) -> Generator[Batch]:
        """Yield this rank's micro-batches without end, from the step that begins at stream position `position`.

        Parameters
        ----------
        position : int
            Samples consumed so far by all ranks, a multiple of the global batch.

        Yields
        ------
        Batch
            Genetics on the CPU, still packed; images where the pipeline ran.
        """
        pieces = self._slices(position)
        under_way: deque[Slice] = deque()

        def next_fed() -> Fed:
            piece = next(pieces)
            under_way.append(piece)
            return self._read(piece, self.config.rotation, self.config.flip)

        pipeline = self._pipeline(next_fed, self.micro_batch, self.config.threads, self.config.prefetch)
        while True:
            image_BCHW = pipeline.run()
            yield self._join(image_BCHW, under_way.popleft())

    def preview(self, count: int) -> Batch:
        """Return up to `count` samples of the first epoch without augmentation, for figures; the same on every rank."""
        piece = self.plan.take(0, min(count, len(self.plan)))
        pipeline = self._pipeline(lambda: self._read(piece, 0.0, 0.0), len(piece.sample), threads=1, depth=1)
        return self._join(pipeline.run(), piece)

    def _pipeline(self, source: Callable[[], Fed], batch: int, threads: int, depth: int) -> ImagePipeline:
        from mrmfast.data.pipeline import ImagePipeline  # data/ imports without DALI

        return ImagePipeline(
            source,
            batch=batch,
            stored_size=self.dataset.manifest.image_size,
            size=self.config.image_size,
            device=self.device,
            threads=threads,
            depth=depth,
        )

    def _slices(self, position: int) -> Iterator[Slice]:
        """Yield the samples of one micro-batch after another."""
        while True:
            for start in range(self.offset, self.offset + self.share, self.micro_batch):
                yield self.plan.take(position + start, self.micro_batch)
            position += self.batch

    def _read(self, piece: Slice, rotation: float, flip: float) -> Fed:
        """Return JPEG bytes, warp matrices and keys of a slice."""
        table, shards = self.dataset.table, self.dataset.manifest.shards
        numbers = table.shard[piece.sample]
        self.dataset.source.prefetch(shards[number] for number in np.unique(numbers))
        jpegs = []
        for sample, number in zip(piece.sample, numbers, strict=True):
            if number not in self._maps:
                self._maps[number] = np.memmap(self.dataset.source.local(shards[number]), mode="r")
            jpegs.append(self._maps[number][table.offset[sample] : table.offset[sample] + table.size[sample]])
        matrices = draw_matrices(piece, seed=self.seed, rotation=rotation, flip=flip, size=self.config.image_size)
        return jpegs, matrices, self._keys(piece)

    def _keys(self, piece: Slice) -> list[str]:
        return [str(key) for key in self.dataset.table.key[piece.sample]]

    def _join(self, image_BCHW: torch.Tensor, piece: Slice) -> Batch:
        rows = self.dataset.genome_rows[piece.sample]
        packed = self.dataset.store.gather(rows) if self.dataset.store is not None else []
        return Batch(
            image_BCHW=image_BCHW,
            packed=tuple(torch.from_numpy(part) for part in packed),
            present=torch.from_numpy(rows >= 0),
            keys=tuple(self._keys(piece)),
            epochs=tuple(piece.epoch.tolist()),
        )
