"""The packed genetics of a dataset in memory, gathered by participant. The format is :mod:`mrmfast.formats.genetics`.

Rows stay packed (2 bits a SNP, 1 bit a burden gene, float16 or float32 a score) until the device unpacks them
(:mod:`mrmfast.ops.genome_unpack`). All ranks of a node share one copy (:mod:`mrmfast.data.genetics.table`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore

from mrmfast.cache import cache_folder
from mrmfast.data.genetics.table import Columns, GenomeTable, lay_out, open_table
from mrmfast.errors import ClosedError, UserError
from mrmfast.formats import checksums
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
        store: Store | None = None,
        cache: str | None = None,
    ) -> GenomeStore:
        """Open the store of a dataset.

        Parameters
        ----------
        dataset : str
            Folder of the dataset. If `store` is given: its URL, for error messages.
        names : iterable of str, optional
            Names of the modalities; all by default.
        store : Store, optional
            The dataset's folder on an object store (:meth:`mrmfast.storage.source.DatasetSource.zarr_store`).
        cache : str, optional
            Folder of this node for the packed rows, shared by its ranks: :func:`mrmfast.cache.cache_folder`.

        Raises
        ------
        UserError
            The store does not exist, lacks a modality or is damaged, or the cache has no space for it.
        """
        where = f"{dataset.rstrip('/')}/{STORE}"
        folder = store or LocalStore(dataset, read_only=True)
        selected = sorted(_held(folder, where) if names is None else names, key=_modality_rank)
        if not selected:
            raise UserError(
                f"{where}: no modality is selected; name at least one of {', '.join(_held(folder, where)) or 'none'}"
            )
        try:
            groups: dict[str, Any] = {name: _open(folder, where, name) for name in selected}
            arrays = [(name, group.attrs["kind"], group["rows"]) for name, group in groups.items()]
            table = open_table(
                cache_folder(cache),
                [_digest(folder, f"{STORE}/{name}") for name in selected],
                arrays,
                lambda name: np.asarray(groups[name]["participants"][:]),
            )
            features = [
                FeatureTable(**{c: np.asarray(group["features"][c][:]) for c in FEATURE_COLUMNS})
                for group in groups.values()
            ]
        except (UserError, ClosedError):  # subclasses of ValueError and RuntimeError with their own messages
            raise
        except (KeyError, ValueError, RuntimeError, FileNotFoundError) as error:
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


def _open(folder: Store, where: str, name: str) -> zarr.Group:
    """Open one modality by its name: its folder is sealed, and https:// cannot list folders."""
    try:
        return zarr.open_group(folder, path=f"{STORE}/{name}", mode="r", zarr_format=3)
    except FileNotFoundError:
        held = ", ".join(_held(folder, where)) or "none"
        raise UserError(f"{where}: no modality {name!r}; it holds {held}") from None


def _held(folder: Store, where: str) -> list[str]:
    """List the modalities of a store."""
    try:
        root = zarr.open_group(folder, path=STORE, mode="r", zarr_format=3)
    except (FileNotFoundError, KeyError) as error:
        raise UserError(
            f"{where}: no genetics; run python -m preprocess snps|pgs|burden|expression, or set data.modalities=[]"
        ) from error
    return sorted(root.group_keys(), key=_modality_rank)


def _modality_rank(name: str) -> tuple[int, str]:
    return (MODALITY_ORDER.index(name) if name in MODALITY_ORDER else len(MODALITY_ORDER), name)


def _digest(folder: Store, name: str) -> str:
    """Return the digest of a modality's folder (:func:`mrmfast.formats.checksums.seal`); it names the content."""
    seal = asyncio.run(folder.get(f"{name}/{checksums.NAME}", default_buffer_prototype()))
    if seal is None:
        raise FileNotFoundError(f"{name}/{checksums.NAME}")
    return hashlib.sha256(seal.to_bytes()).hexdigest()
