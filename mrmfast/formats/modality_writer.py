"""Writing one modality of ``genetics.zarr``: :class:`ModalityWriter`. The schema is in :mod:`mrmfast.formats.genetics`.

Rows of packed participants are collected to whole shard files, because a partial write of a shard rewrites all of it.
A command that has made shard files already (``snps``, in parts) has them adopted instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mrmfast.atomic import rename_directory, write_aside
from mrmfast.errors import UserError
from mrmfast.formats.checksums import seal
from mrmfast.formats.genetics import (
    FEATURE_COLUMNS,
    ROOT_METADATA,
    STORE,
    Encoding,
    FeatureTable,
    FloatDtype,
    pack_rows,
    packed_width,
    shard_shape,
)
from mrmfast.formats.manifest import updating
from mrmfast.formats.zarr_shard import ZSTD_LEVEL


class ModalityWriter:
    """Writes one modality aside; when the block ends, renames it into ``genetics.zarr`` and enters it in the manifest.

    If the block raises, nothing is left. Example::

        with ModalityWriter("dataset", "burden", "binary", ids, features) as writer:
            for bits in blocks:      # uint8, shape (rows, n_features), 0 or 1
                writer.append(bits)

    Parameters
    ----------
    dataset : path
        The dataset folder.
    name : str
        Modality, e.g. ``snps``.
    encoding : {"genotype", "binary", "float"}
    participants : iterable of str
        Unique ids, one per row, in the order of the rows.
    features : FeatureTable
    attributes : dict, optional
        Provenance kept with the modality (rules, thresholds, counts); no ids.
    float_dtype : {"float32", "float16"}
        How a ``float`` modality is kept on disk and in memory.

    Raises
    ------
    UserError
        The modality exists already, ids repeat, or there are no features or participants.
    """

    def __init__(
        self,
        dataset: str | Path,
        name: str,
        encoding: Encoding,
        participants: Iterable[str],
        features: FeatureTable,
        *,
        attributes: dict[str, Any] | None = None,
        float_dtype: FloatDtype = "float32",
    ) -> None:
        self.dataset, self.name, self.encoding, self.features = Path(dataset), name, encoding, features
        self.ids = np.array([str(participant) for participant in participants], dtype=object)
        self.attributes, self.float_dtype = attributes or {}, float_dtype
        self.final = self.dataset / STORE / name
        self.aside = self.dataset / f".{name}.zarr.partial"
        self._check()
        chunk, chunks_per_shard = shard_shape(len(self.ids))
        self.rows_per_shard = chunk * chunks_per_shard
        self._held: list[np.ndarray] = []
        self._written = 0

    def _check(self) -> None:
        repeats = len(self.ids) - len(set(self.ids))
        if self.final.exists():
            raise UserError(f"{self.final}: exists already; remove that folder to write it again")
        if repeats:
            raise UserError(f"{self.name}: {repeats} participant ids repeat; make ids unique in the source")
        if not len(self.features) or not len(self.ids):
            raise UserError(
                f"{self.name}: nothing to write ({len(self.ids)} participants, {len(self.features)} features); "
                "check the source"
            )

    def __enter__(self) -> ModalityWriter:
        # Zarr takes longer to import than many a command needs to notice a mistake.
        import zarr
        from zarr.codecs import ZstdCodec

        shutil.rmtree(self.aside, ignore_errors=True)
        self._group: Any = zarr.open_group(self.aside, mode="w", zarr_format=3)
        self._group.attrs.update({"kind": self.encoding, "n_features": len(self.features), **self.attributes})
        width = packed_width(self.encoding, len(self.features))
        self._rows: Any = self._group.create_array(
            "rows",
            shape=(len(self.ids), width),
            chunks=(shard_shape(len(self.ids))[0], width),
            shards=(self.rows_per_shard, width),
            dtype=self.float_dtype if self.encoding == "float" else "uint8",
            compressors=[ZstdCodec(level=ZSTD_LEVEL, checksum=True)],
        )
        return self

    def append(self, values: np.ndarray) -> None:
        """Add the next rows, unpacked, of any number.

        Parameters
        ----------
        values : ndarray, shape (rows, n_features)
            As :func:`mrmfast.formats.genetics.pack_rows` takes them.

        Raises
        ------
        UserError
            A value is outside the range of its encoding.
        """
        self.append_packed(pack_rows(self.encoding, values, self.float_dtype))

    def append_packed(self, rows: np.ndarray) -> None:
        """Add the next rows, packed as :func:`mrmfast.formats.genetics.pack_rows` packs them."""
        assert rows.shape[1] == self._rows.shape[1] and rows.dtype == self._rows.dtype, "rows of another encoding"
        self._held.append(rows)
        if sum(map(len, self._held)) >= self.rows_per_shard:
            joined = np.concatenate(self._held)
            whole = len(joined) // self.rows_per_shard * self.rows_per_shard
            self._rows[self._written : self._written + whole] = joined[:whole]
            self._written += whole
            # A copy: a view would keep the whole of `joined` alive until the next shard is full.
            self._held = [joined[whole:].copy()]

    def adopt_shard(self, path: Path, size: int) -> None:
        """Take the next shard file from where it lies.

        Parameters
        ----------
        path : Path
            On the disk of the dataset; written by :func:`mrmfast.formats.zarr_shard.write_shard`. It is moved.
        size : int
            Bytes of the shard; what follows them in the file is cut off. 0: all rows are zero, and no file is stored.
        """
        assert not self._held and self._written % self.rows_per_shard == 0, "rows were appended before"
        number = self._written // self.rows_per_shard
        self._written = min(self._written + self.rows_per_shard, len(self.ids))
        if size:
            target = self.aside / "rows" / "c" / str(number) / "0"
            target.parent.mkdir(parents=True)
            os.replace(path, target)
            os.truncate(target, size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            shutil.rmtree(self.aside, ignore_errors=True)

    def _finish(self) -> None:
        from mrmfast.formats.sample_table import write_columns

        rest = np.concatenate(self._held) if self._held else np.empty((0, self._rows.shape[1]), self._rows.dtype)
        written = self._written + len(rest)
        assert written == len(self.ids), f"{written} rows written, {len(self.ids)} participants"
        if len(rest):
            self._rows[self._written :] = rest
        write_columns(self._group, {"participants": self.ids})
        columns = {column: getattr(self.features, column) for column in FEATURE_COLUMNS}
        write_columns(self._group.create_group("features"), columns)
        digest = seal(self.aside)
        root = self.dataset / STORE / "zarr.json"
        if not root.exists():
            with write_aside(root) as file:
                file.write(ROOT_METADATA)
        rename_directory(self.aside, self.final)
        entry = {"kind": self.encoding, "n_features": len(self.features), "participants": len(self.ids)}
        with updating(self.dataset) as manifest:
            manifest.genetics[self.name] = {**entry, "sha256": digest}


def write_modality(
    dataset: str | Path,
    name: str,
    encoding: Encoding,
    participants: Iterable[str],
    features: FeatureTable,
    blocks: Iterable[np.ndarray],
    **options: Any,
) -> None:
    """Write a modality from blocks of consecutive rows; the arguments are those of :class:`ModalityWriter`."""
    with ModalityWriter(dataset, name, encoding, participants, features, **options) as writer:
        for block in blocks:
            writer.append(block)
