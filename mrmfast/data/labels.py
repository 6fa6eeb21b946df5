"""Targets of samples: labels from a table, joined by image or participant, or masks from the shards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mrmfast.batch import LabelKind, LabelSpec
from mrmfast.errors import UserError
from mrmfast.formats.labels import read_labels
from mrmfast.formats.sample_table import MaskColumn, SampleTable


@dataclass(frozen=True)
class LabelsConfig:
    """What a sample's target is.

    Attributes
    ----------
    kind : {"class", "multi_hot", "values", "mask"}, optional
        ``class``: one column of class names or numbers. ``multi_hot``: columns of 0 and 1. ``values``: columns of
        numbers, of which some may be missing. ``mask``: masks of the shards. None: samples have no target.
    path : str, optional
        Table of labels (:func:`mrmfast.formats.labels.read_labels`); not for masks.
    columns : list of str, optional
        Columns of the table. For masks: their names, all by default.
    by : {"key", "participant"}
        Whether a row of the table belongs to an image or to all images of a participant.
    identifier : str, optional
        Name of the column with the keys or participants; the value of `by` by default.
    classes : list of str, optional
        The classes in the order of their numbers; by default from the table.
    missing : {"error", "drop"}
        What to do with images that have no label: stop, or exclude them.
    """

    kind: LabelKind | None = None
    path: str | None = None
    columns: list[str] | None = None
    by: Literal["key", "participant"] = "key"
    identifier: str | None = None
    classes: list[str] | None = None
    missing: Literal["error", "drop"] = "error"


@dataclass(frozen=True)
class Targets:
    """The targets of all samples of a dataset.

    Attributes
    ----------
    spec : LabelSpec
    labelled : ndarray of bool, shape (samples,)
        Which samples have a target.
    values : ndarray or None
        Row per sample: int64 (samples,), or float32 (samples, C). None for masks.
    masks : tuple of MaskColumn
        Where the masks' bytes are; empty for other kinds.
    rows_unused : int
        Rows of the table that belong to no sample.
    """

    spec: LabelSpec
    labelled: np.ndarray
    values: np.ndarray | None = None
    masks: tuple[MaskColumn, ...] = ()
    rows_unused: int = 0

    def of(self, samples: np.ndarray) -> Tensor | None:
        """Return the targets of samples: int64 (n,) or float32 (n, C); None for masks, which come with the images."""
        return None if self.values is None else torch.from_numpy(self.values[samples])

    def digest(self) -> str:
        """Identify the targets without naming anyone: a resumed run must have the same."""
        digest = hashlib.sha256(repr(self.spec).encode())
        digest.update(self.labelled.tobytes())
        if self.values is not None:
            digest.update(self.values.tobytes())
        return digest.hexdigest()


def read_targets(config: LabelsConfig, table: SampleTable) -> Targets | None:
    """Read the targets of a dataset's samples; None where the config asks for none.

    Parameters
    ----------
    config : LabelsConfig
    table : SampleTable

    Raises
    ------
    UserError
        The settings contradict each other, the table of labels is unusable or names no sample, or the dataset has no
        such mask.
    """
    if config.kind is None:
        if config != LabelsConfig():
            raise UserError("data.labels.kind is empty; choose class, multi_hot, values or mask")
        return None
    if config.kind == "mask":
        return _masks(config, table)
    if config.path is None:
        raise UserError(f"data.labels.path is empty; kind {config.kind} needs a table of labels")
    if config.classes is not None and config.kind != "class":
        raise UserError(f"data.labels.classes goes with kind class, not {config.kind}; leave it out")
    identifier = config.identifier or config.by
    labels = read_labels(
        config.path, kind=config.kind, columns=config.columns or [], identifier=identifier, classes=config.classes
    )
    names = getattr(table, config.by).tolist()
    rows = np.array([labels.rows.get(name, -1) for name in names], dtype=np.int64)
    if not (rows >= 0).any():
        raise UserError(
            f"{config.path}: column {identifier!r} names no {config.by} of the dataset; "
            "are these the dataset's own keys or (pseudonymised) participants?"
        )
    # A row without any value is no label.
    labelled = (rows >= 0) & labels.has_value()[rows]
    values = labels.values[rows]
    values[~labelled] = -1 if config.kind == "class" else np.nan
    unused = len(labels.rows) - len(np.unique(rows[rows >= 0]))
    return Targets(LabelSpec(config.kind, labels.names), labelled, values, rows_unused=unused)


def _masks(config: LabelsConfig, table: SampleTable) -> Targets:
    if config.path is not None or config.classes is not None or config.by != "key" or config.identifier is not None:
        raise UserError(
            "data.labels.path, by, identifier and classes go with a table; kind mask takes masks from the shards"
        )
    known = {mask.name: mask for mask in table.masks}
    names = config.columns if config.columns is not None else list(known)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        holds = f"it holds {', '.join(known)}" if known else "it holds none"
        what = f"mask {unknown[0]!r}" if unknown else "masks"
        raise UserError(f"data.labels.columns: the dataset has no {what}; {holds}")
    masks = tuple(known[name] for name in names)
    channels = tuple(
        mask.name if mask.channels == 1 else f"{mask.name}/{channel}"
        for mask in masks
        for channel in range(mask.channels)
    )
    labelled = np.any([mask.size > 0 for mask in masks], axis=0)
    return Targets(LabelSpec("mask", channels), labelled, masks=masks)


def select_labelled(config: LabelsConfig, targets: Targets, selected: np.ndarray) -> np.ndarray:
    """Return the samples of `selected` that have a target.

    Parameters
    ----------
    config : LabelsConfig
    targets : Targets
    selected : ndarray of int64

    Raises
    ------
    UserError
        None has one, or some have none under ``missing="error"``.
    """
    keep = targets.labelled[selected]
    without = int((~keep).sum())
    if without == len(selected) or (without and config.missing == "error"):
        where = config.path or "data.labels"
        what = "mask" if config.kind == "mask" else "label"
        remedy = (
            "give labels for this split"
            if without == len(selected)
            else "add them, or leave the images out with data.labels.missing=drop"
        )
        raise UserError(f"{where}: {without} of {len(selected)} images have no {what}; {remedy}")
    return selected[keep]
