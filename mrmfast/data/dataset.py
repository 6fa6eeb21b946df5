"""An opened dataset: its images, genetics and labels, the selected samples, and their order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le

from mrmfast.batch import GenomeSpec, LabelSpec, ModalitySpec
from mrmfast.config import NonNegative, NonNegativeInt, PositiveInt, Share, build
from mrmfast.data.genetics.store import GenomeStore
from mrmfast.data.images.backend import Backend, Pixels
from mrmfast.data.labels import LabelsConfig, Targets, read_targets, select_labelled
from mrmfast.data.sampling.sampler import Sampler
from mrmfast.data.sampling.weights import read_weights
from mrmfast.errors import UserError
from mrmfast.formats.manifest import Manifest
from mrmfast.formats.sample_table import SampleTable, check_table, read_sample_table
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.source import DatasetSource


@dataclass(frozen=True)
class DataConfig:
    """The dataset and how it is loaded.

    Attributes
    ----------
    path : str
        Dataset folder or URL (``s3://bucket/prefix``).
    split : {"train", "test", "all"}
        Which participants, by the dataset's split rule.
    modalities : list of str, optional
        Which genetics; all that the dataset has by default, none (``[]``) for images only.
    unmatched : {"error", "drop", "keep"}
        Images whose participant has no genetics at all: stop with an error, drop the images, or train on them with
        filled genetics that carry no loss.
    image_size : int
        Side of the input, pixels.
    rotation : float
        Largest rotation, degrees, drawn uniformly from both directions (paper: 20).
    flip : float
        Probability of a left-right flip (paper: 0.5).
    shuffle_window : int
        0: full shuffle. w, for object stores: shuffle the shards, cut them into 64 sub-sequences, and shuffle images
        within each w shards of a sub-sequence. All ranks together use 64 w shards at a time; each rank reads its part.
    sampling : {"images", "participants"}
        Entries of an epoch: each image once, or one image per participant, drawn anew in each epoch.
    weights : str, optional
        CSV file with the columns ``key,weight`` or ``participant,weight``. Images are drawn in proportion to their
        weight; an epoch has as many entries as there are images. An image of weight 2 is drawn twice as often as an
        image of weight 1, an image of weight 0 never. Only with ``sampling: images``.
    unreadable : float
        Largest fraction of unreadable images. Unreadable images are skipped, counted and reported, and the next images
        of the stream replace them. A larger fraction stops the run.
    backend : {"auto", "dali", "cpu"}
        Image backend. ``auto``: DALI on a GPU, the fused CPU path without a GPU.
    pixels : {"uint8", "float32"}
        Type of the loader's pixels: bytes, which the model normalises, or normalised floats. Bytes need a quarter of
        the bandwidth to the GPU.
    threads : int, optional
        CPU threads for decoding per rank; by default the rank's share of the machine's cores, at most 8.
    prefetch : int
        Batches that are decoded ahead.
    cache : str, optional
        Folder for downloaded shards.
    anonymous : bool
        Read a public bucket without credentials.
    fetch : FetchConfig
        Requests, time limits and the cache's size.
    labels : LabelsConfig
        Target of a sample; none by default.
    """

    path: str = ""
    split: Literal["train", "test", "all"] = "train"
    modalities: list[str] | None = None
    unmatched: Literal["error", "drop", "keep"] = "error"
    image_size: Annotated[int, Ge(16), Le(8192)] = 224
    rotation: Annotated[NonNegative, Le(180)] = 20.0
    flip: Share = 0.5
    shuffle_window: Annotated[NonNegativeInt, Le(2**20)] = 0
    sampling: Literal["images", "participants"] = "images"
    weights: str | None = None
    unreadable: Share = 0.01
    backend: Backend = "auto"
    pixels: Pixels = "uint8"
    threads: Annotated[PositiveInt, Le(1024)] | None = None
    prefetch: Annotated[PositiveInt, Le(64)] = 3
    cache: str | None = None
    anonymous: bool = False
    fetch: FetchConfig = field(default_factory=FetchConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)


@dataclass
class Dataset:
    """An opened dataset and the samples selected for training.

    Attributes
    ----------
    source : DatasetSource
    manifest : Manifest
    table : SampleTable
        All samples.
    selected : ndarray of int64
        Rows of `table` in the split (with ``unmatched="drop"``: those with genetics).
    store : GenomeStore or None
    genome_rows : ndarray of int64, shape (len(table), modalities)
        Rows in the store per sample, -1 where absent.
    targets : Targets or None
        Of all samples; None without ``data.labels``.
    """

    source: DatasetSource
    manifest: Manifest
    table: SampleTable
    selected: np.ndarray
    store: GenomeStore | None
    genome_rows: np.ndarray
    targets: Targets | None = None

    def label_spec(self) -> LabelSpec | None:
        """Describe the targets for a task; None without ``data.labels``."""
        return None if self.targets is None else self.targets.spec

    def genome_spec(self) -> GenomeSpec | None:
        """Describe x_G for the model; None when training on images only."""
        if self.store is None:
            return None
        groups = self.store.groups()
        return GenomeSpec(
            modalities=tuple(ModalitySpec(m.name, str(m.encoding), len(m.features)) for m in self.store.modalities),
            groups=tuple(size for _, _, size in groups),
            group_names=tuple(f"{modality}/{group}" for modality, group, _ in groups),
            fill=torch.from_numpy(self.store.fill()),
        )

    def images_alone(self) -> Dataset:
        """Return the same images without their genetics."""
        return replace(self, store=None, genome_rows=np.empty((len(self.table), 0), np.int64))


def open_dataset(config: DataConfig | str, **settings: Any) -> Dataset:
    """Open a dataset and join images with genetics.

    Parameters
    ----------
    config : DataConfig or str
        A folder or URL is the ``path`` of a config.
    **settings
        Other keys of the config, beside a folder or URL: ``split="test"``, ``modalities=["snps"]``.

    Raises
    ------
    UserError
        The dataset has no images, no image is in the split, images lack genetics under ``unmatched="error"``, or labels
        are unusable or missing under ``labels.missing="error"``.
    """
    if isinstance(config, str):
        config = build(DataConfig, {"path": config, **settings}, "open_dataset")
    elif settings:
        raise TypeError("open_dataset: settings go with a folder or URL; change the DataConfig instead")
    if not config.path:
        raise UserError("data.path is empty; give data.path=FOLDER or data.path=s3://BUCKET/PREFIX")
    source = DatasetSource(config.path, config.cache, {"anon": True} if config.anonymous else None, config.fetch)
    manifest = source.manifest()
    if not (manifest.shards and manifest.index_sha256 and manifest.image_size):
        raise UserError(
            f"data.path={config.path}: holds no images yet; run python -m preprocess fundus or pathology into it"
        )
    table = read_sample_table(source.url, source.zarr_store())
    check_table(table, manifest.shards, config.path)
    selected = np.arange(len(table))
    if config.split != "all":
        selected = selected[manifest.splits.training(table.participant.tolist()) == (config.split == "train")]
        if not len(selected):
            raise UserError(f"data.split={config.split}: none of the {len(table)} images is in it; use data.split=all")
    targets = read_targets(config.labels, table)
    if targets is not None:
        selected = select_labelled(config.labels, targets, selected)
    names = sorted(set(manifest.genetics if config.modalities is None else config.modalities))
    if not names:
        return Dataset(source, manifest, table, selected, None, np.empty((len(table), 0), np.int64), targets)
    store = GenomeStore.open(source.url, names, source.zarr_store(), config.cache)
    rows = store.locate(table.participant)
    selected = _select_matched(config, selected, rows[selected])
    return Dataset(source, manifest, table, selected, store, rows, targets)


def _select_matched(config: DataConfig, selected: np.ndarray, genome_rows: np.ndarray) -> np.ndarray:
    """Return the selected samples without the samples that lack genetics, unless the config keeps these."""
    unmatched = np.asarray((genome_rows < 0).all(1))
    if unmatched.all() or (unmatched.any() and config.unmatched == "error"):
        remedy = (
            "do both come from the same id list?"
            if unmatched.all()
            else "drop them with data.unmatched=drop, or keep them without a genome loss with data.unmatched=keep"
        )
        raise UserError(
            f"{config.path}: {int(unmatched.sum())} of {len(selected)} images belong to participants without genetics; "
            + remedy
        )
    return selected[~unmatched] if config.unmatched == "drop" else selected


def make_sampler(dataset: Dataset, config: DataConfig, seed: int) -> Sampler:
    """Return the sampler of the selected samples.

    Raises
    ------
    UserError
        The weights cannot be read, or are combined with ``sampling="participants"``.
    """
    table = dataset.table
    selected = np.zeros(len(table), dtype=bool)
    selected[dataset.selected] = True
    weights = participant = None
    if config.sampling == "participants":
        if config.weights is not None:
            raise UserError("data.weights goes with data.sampling=images, not participants; remove one of the two")
        participant = np.unique(table.participant, return_inverse=True)[1]
    elif config.weights is not None:
        weights = read_weights(config.weights, table, selected)
    per_shard = np.bincount(table.shard, minlength=len(dataset.manifest.shards))
    return Sampler(per_shard, seed, config.shuffle_window, selected=selected, weights=weights, participant=participant)
