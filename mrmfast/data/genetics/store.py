"""The packed genetics of a dataset in memory, gathered by participant. The format is :mod:`mrmfast.formats.genetics`.

Rows stay packed (2 bits a SNP, 1 bit a burden gene, float16 or float32 a score) until the device unpacks them
(:mod:`mrmfast.ops.genome_unpack`). All ranks of a node share one copy (:mod:`mrmfast.data.genetics.table`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import zarr

from mrmfast.cache import cache_folder
from mrmfast.data.genetics.table import Columns, GenomeTable, lay_out, open_table
from mrmfast.errors import PARSE_ERRORS, ClosedError, UserError
from mrmfast.formats.genetics import (
    FEATURE_COLUMNS,
    MODALITY_ORDER,
    STORE,
    Encoding,
    FeatureTable,
    pack_rows,
    packed_width,
)
from mrmfast.formats.modality_writer import ModalityWriter, write_modality
from mrmfast.storage.source import DatasetSource
from mrmfast.storage.zarr_store import SealedStore

__all__ = [
    "STORE",
    "Encoding",
    "FeatureTable",
    "GenomeStore",
    "Modality",
    "ModalityWriter",
    "pack_rows",
    "packed_width",
    "write_modality",
]


class Modality:
    """One modality of an open store.

    Attributes
    ----------
    name : str
    encoding : Encoding
    features : FeatureTable
    """

    def __init__(self, table: GenomeTable, number: int, columns: Columns, features: FeatureTable) -> None:
        self.name, self.encoding, self.features = columns.name, columns.encoding, features
        self._table, self._number, self._columns = table, number, columns

    @property
    def participants(self) -> np.ndarray:
        """Ids of the participants with this modality, str, in the order of :attr:`rows`; a new array at each call."""
        ids = np.empty(len(self._table.row_of), dtype=object)
        ids[self._table.row_of] = [name.decode() for name in self._table.ids.tolist()]
        return ids[self._table.present[:-1, self._number]]

    @property
    def rows(self) -> np.ndarray:
        """A copy of all packed rows, shape (participants, packed width)."""
        return self.take(np.flatnonzero(self._table.present[:-1, self._number]))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Copy packed rows (int64, shape (n,), -1 for absent), shape (n, packed width)."""
        columns = self._columns
        return self._table.rows[rows, columns.start : columns.stop].view(columns.dtype)


class GenomeStore:
    """Packed genetics of a dataset.

    Parameters
    ----------
    modalities : list of Modality
        In the order in which their features make up ``x_G``.
    table : GenomeTable
        Packed rows of all modalities.
    """

    def __init__(self, modalities: list[Modality], table: GenomeTable) -> None:
        self.modalities, self.table = modalities, table

    @classmethod
    def open(
        cls,
        dataset: str,
        names: Iterable[str] | None = None,
        store: SealedStore | None = None,
        cache: str | None = None,
    ) -> GenomeStore:
        """Open the store of a dataset.

        Parameters
        ----------
        dataset : str
            Folder of the dataset. If `store` is given: its URL, for error messages.
        names : iterable of str, optional
            Names of the modalities; all by default.
        store : SealedStore, optional
            The dataset's files, each compared with the manifest
            (:meth:`mrmfast.storage.source.DatasetSource.zarr_store`); opened here by default.
        cache : str, optional
            Folder of this node for the packed rows, shared by its ranks: :func:`mrmfast.cache.cache_folder`.

        Raises
        ------
        UserError
            The store does not exist, lacks a modality or is damaged, or the cache has no space for it.
        """
        if store is None:
            with DatasetSource(dataset, cache) as source:
                return cls.open(dataset, names, source.zarr_store(), cache)
        where = f"{dataset.rstrip('/')}/{STORE}"
        held = sorted(store.sealed(STORE), key=_modality_rank)
        selected = held if names is None else sorted(names, key=_modality_rank)
        _require(selected, held, where)
        try:
            groups: dict[str, Any] = {
                name: zarr.open_group(store, path=f"{STORE}/{name}", mode="r", zarr_format=3) for name in selected
            }
            features = [_features(group) for group in groups.values()]
            arrays = [(name, group.attrs["kind"], group["rows"]) for name, group in groups.items()]
            for (_, encoding, rows), part in zip(arrays, features, strict=True):
                _check_rows(rows, encoding, len(part))
            table = open_table(
                cache_folder(cache),
                [store.sealed(STORE)[name] for name in selected],
                arrays,
                lambda name: np.asarray(groups[name]["participants"][:]),
            )
        except (UserError, ClosedError):  # subclasses of ValueError and RuntimeError with their own messages
            raise
        except PARSE_ERRORS as error:
            raise UserError(
                f"{where}: damaged ({type(error).__name__}); python -m preprocess check names the damaged files"
            ) from error
        columns, _ = lay_out(arrays)
        modalities = [Modality(table, number, columns[number], part) for number, part in enumerate(features)]
        return cls(modalities, table)

    @property
    def n_features(self) -> int:
        """Length of ``x_G``."""
        return sum(len(modality.features) for modality in self.modalities)

    def groups(self) -> list[tuple[str, str, int]]:
        """Return (modality, group, number of features) in the order of ``x_G``: the genome tokens."""
        return [(m.name, group, size) for m in self.modalities for group, size in m.features.groups()]

    def fill(self) -> np.ndarray:
        """Return the replacements of missing values on input, shape (n_features,), float32."""
        return np.concatenate([m.features.fill for m in self.modalities])

    def locate(self, participants: np.ndarray) -> np.ndarray:
        """Return the rows of participants in every modality.

        Parameters
        ----------
        participants : ndarray of str, shape (n,)

        Returns
        -------
        ndarray of int64, shape (n, modalities)
            A participant's row number; -1 where a participant lacks a modality.
        """
        row = self.table.locate(participants)
        return np.where(self.table.present[row], row[:, None], -1)

    def gather(self, rows: np.ndarray) -> list[np.ndarray]:
        """Copy packed rows; absent ones are all-missing (genotype, float) or zero bits (binary, masked by presence).

        Parameters
        ----------
        rows : ndarray of int64, shape (n, modalities)
            From :meth:`locate`.

        Returns
        -------
        list of ndarray, each of shape (n, packed width)
        """
        # All modalities of a participant share one row, so its pages are read once. Row -1: no genetics.
        row = rows.max(axis=1)
        return [modality.take(row) for modality in self.modalities]


def _require(selected: list[str], held: list[str], where: str) -> None:
    """Refuse a selection of modalities that the dataset does not hold."""
    if not held:
        raise UserError(
            f"{where}: no genetics; run python -m preprocess snps|pgs|burden|expression, or set data.modalities=[]"
        )
    if not selected:
        raise UserError(f"{where}: no modality is selected; name at least one of {', '.join(held)}")
    for name in selected:
        if name not in held:
            raise UserError(f"{where}: no modality {name!r}; it holds {', '.join(held)}")


def _features(group: Any) -> FeatureTable:
    arrays = {name: group["features"][name] for name in FEATURE_COLUMNS}
    if any(array.shape != (group.attrs["n_features"],) for array in arrays.values()):
        raise ValueError("feature columns differ in length")
    return FeatureTable(**{name: np.asarray(array[:]) for name, array in arrays.items()})


def _check_rows(rows: Any, encoding: Encoding, n_features: int) -> None:
    """Refuse rows of another type or width than their encoding has."""
    types = ("float32", "float16") if encoding == "float" else ("uint8",)
    if rows.ndim != 2 or str(rows.dtype) not in types or rows.shape[1] != packed_width(encoding, n_features):
        raise ValueError("rows of another encoding")


def _modality_rank(name: str) -> tuple[int, str]:
    return (MODALITY_ORDER.index(name) if name in MODALITY_ORDER else len(MODALITY_ORDER), name)
