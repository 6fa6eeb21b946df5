"""Counts of a stored modality for the report, shard by shard, so that memory does not grow with the cohort."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from tqdm import tqdm

from mrmfast.formats.genetics import FEATURE_COLUMNS, STORE, Encoding, FeatureTable

EDGES = np.linspace(-6, 6, 121)  # standard deviations
ROWS = 2048  # rows unpacked at a time: 38 MB for 18,574 genes


@dataclass
class Statistics:
    """Counts of one modality.

    Attributes
    ----------
    name, encoding, participants, features
    missing_per_feature, missing_per_participant : ndarray of int64
    sum_per_feature : ndarray of float64, shape (n_features,)
        Sum of copies, bits or values that are not missing.
    sum_per_participant : ndarray of int64, shape (participants,)
        Number of set bits (binary only, otherwise zeros).
    histogram : ndarray of int64, shape (n_features, 120)
        Counts of values in the bins of :data:`EDGES`, outliers in the outermost bins (float only, otherwise empty).
    """

    name: str
    encoding: Encoding
    participants: int
    features: FeatureTable
    missing_per_feature: np.ndarray
    missing_per_participant: np.ndarray
    sum_per_feature: np.ndarray
    sum_per_participant: np.ndarray
    histogram: np.ndarray

    @property
    def frequency(self) -> np.ndarray:
        """Frequency of the counted allele or bit, shape (n_features,); NaN for a feature without values."""
        known = (self.participants - self.missing_per_feature).astype(float)
        known[known == 0] = np.nan
        return self.sum_per_feature / known / (2 if self.encoding == "genotype" else 1)


def collect(dataset: Path, name: str) -> Statistics:
    """Read one modality of a dataset once."""
    group: Any = zarr.open_group(dataset / STORE / name, mode="r")
    features = FeatureTable(**{c: np.asarray(group["features"][c][:]) for c in FEATURE_COLUMNS})
    kind, rows, count = group.attrs["kind"], group["rows"], len(features)
    people = rows.shape[0]
    statistics = Statistics(
        name,
        kind,
        people,
        features,
        np.zeros(count, np.int64),
        np.zeros(people, np.int64),
        np.zeros(count),
        np.zeros(people, np.int64),
        np.zeros((count if kind == "float" else 0, len(EDGES) - 1), np.int64),
    )
    with tqdm(total=people, desc=f"report: {name}", unit="participant", disable=None) as bar:
        for start in range(0, people, rows.shards[0]):
            shard = rows[start : start + rows.shards[0]]
            for first in range(0, len(shard), ROWS):
                part = shard[first : first + ROWS]
                _add(statistics, slice(start + first, start + first + len(part)), part)
                bar.update(len(part))
    return statistics


def _add(statistics: Statistics, rows: slice, packed: np.ndarray) -> None:
    count = len(statistics.features)
    if statistics.encoding == "binary":
        bits = np.unpackbits(packed, axis=1, bitorder="little", count=count)
        statistics.sum_per_feature += bits.sum(axis=0)
        statistics.sum_per_participant[rows] = bits.sum(axis=1)
        return
    if statistics.encoding == "genotype":
        codes = (packed[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
        codes = codes.reshape(len(packed), -1)[:, :count]
        missing = codes == 3
        statistics.sum_per_feature += np.where(missing, 0, codes).sum(axis=0)
    else:
        values = packed.astype(np.float32)
        missing = np.isnan(values)
        values[missing] = 0
        statistics.sum_per_feature += values.sum(axis=0, dtype=float)
        bins = np.clip(np.digitize(values, EDGES) - 1, 0, len(EDGES) - 2)
        flat = (bins + np.arange(count) * (len(EDGES) - 1))[~missing]
        statistics.histogram += np.bincount(flat, minlength=statistics.histogram.size).reshape(
            statistics.histogram.shape
        )
    statistics.missing_per_feature += missing.sum(axis=0)
    statistics.missing_per_participant[rows] = missing.sum(axis=1)
