"""Reads of .bed and .pgen through pgenlib, which knows both formats: calls, dosages, counts, sparse records.

pgenlib counts A1 copies (.bim column 5) of a .bed and ALT copies of a .pgen, marks missing as -9 in calls and in
dosages, and takes samples in ascending order only.

See docs/genetics-pitfalls.md#missing-codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pgenlib

from mrmfast.errors import UserError
from preprocess.genetics.genotypes.base import MISSING, Carriers, GenotypeFile, flipped


class PgenlibReader:
    """Open readers of one file, one for each thread that reads at the same time.

    Parameters
    ----------
    path : Path
    samples, variants : int
        How many the companions (.fam and .bim, or .psam and .pvar) name.
    allele_counts : ndarray of int8, shape (variants,)
        pgenlib cannot know which sites are multi-allelic.

    Raises
    ------
    UserError
        The file does not hold these samples and variants.
    """

    def __init__(self, path: Path, samples: int, variants: int, allele_counts: np.ndarray) -> None:
        self.path, self.samples, self.variants = path, samples, variants
        self.options: dict[str, Any] = {}
        if (allele_counts > 2).any():
            self.options["allele_idx_offsets"] = np.r_[0, np.cumsum(allele_counts, dtype=np.int64)].astype(np.uintp)
        self._idle: list[Any] = [self._open()]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}  # open files stay in their process

    def _open(self) -> Any:
        try:
            return pgenlib.PgenReader(
                str(self.path).encode(), raw_sample_ct=self.samples, variant_ct=self.variants, **self.options
            )
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{self.path}: does not hold {self.samples} samples x {self.variants} variants as its companions say; "
                "it is truncated or they belong to another file"
            ) from error

    def calls(self, columns: np.ndarray, samples: np.ndarray | None) -> np.ndarray:
        """Read hard calls; see :meth:`.base.GenotypeFile.hard_calls`."""
        out = self._read("read_list", columns, samples, np.int8)
        np.clip(out, MISSING, 2, out=out)  # ten times as fast as np.maximum
        return out

    def dosages(self, columns: np.ndarray, samples: np.ndarray | None) -> np.ndarray:
        """Read dosages; see :meth:`.base.GenotypeFile.dosages`."""
        out = self._read("read_dosages_list", columns, samples, np.float32)
        # An unmasked -9 would silently ruin a sum.
        if out.size and out.min() < 0:
            out[out < 0] = np.nan
        return out

    def _read(self, method: str, columns: np.ndarray, samples: np.ndarray | None, dtype: type) -> np.ndarray:
        order = None if samples is None or (np.diff(samples) > 0).all() else np.argsort(samples, kind="stable")
        ascending = samples if order is None or samples is None else samples[order]
        out: np.ndarray = np.empty((len(columns), self.samples if samples is None else len(samples)), dtype=dtype)
        with self._borrowed(ascending) as reader:
            try:
                getattr(reader, method)(columns.astype(np.uint32), out)
            except (RuntimeError, OSError) as error:
                raise self._damaged(int(columns.min()), int(columns.max())) from error
        if order is None:
            return out
        in_order = np.empty_like(out)
        in_order[:, order] = out
        return in_order

    def counts(self, columns: np.ndarray, samples: np.ndarray | None) -> np.ndarray:
        """Count genotypes in their packed form; see :meth:`.base.GenotypeFile.genotype_counts`."""
        counts = np.empty((len(columns), 4), dtype=np.uint32)
        column = 0
        with self._borrowed(None if samples is None else np.sort(samples)) as reader:
            try:
                for row, column in zip(counts, columns.tolist(), strict=True):
                    reader.count(column, row)
            except (RuntimeError, OSError) as error:
                raise self._damaged(column, column) from error
        return counts.astype(np.int64)

    def sparse_carriers(self, columns: np.ndarray, place_of_sample: np.ndarray) -> tuple[np.ndarray, Carriers]:
        """List the carriers of variants whose records are stored as lists of carriers (rare ALT in a .pgen).

        Parameters
        ----------
        columns : ndarray of int64, shape (n,)
        place_of_sample : ndarray of int32, shape (samples of the file,)
            What a sample is called in the result; -1 drops it.

        Returns
        -------
        is_sparse : ndarray of bool, shape (n,)
            The variants that are stored so; the others are not in the list.
        Carriers
        """
        is_sparse = np.zeros(len(columns), dtype=bool)
        lists = []
        column = 0
        with self._borrowed(None) as reader:  # sparse reads know no subset of samples
            try:
                for number, column in enumerate(columns.tolist()):
                    if reader.has_sparse(column):
                        lists.append(reader.read_sparse8(column))
                        is_sparse[number] = True
            except (RuntimeError, OSError) as error:
                raise self._damaged(column, column) from error
        if not lists:
            return is_sparse, Carriers.joined([])
        variant = np.repeat(np.flatnonzero(is_sparse), [len(rows) for rows, _ in lists])
        rows, copies = (np.concatenate(parts) for parts in zip(*lists, strict=True))
        sample = place_of_sample[rows].astype(np.int64)
        kept = sample >= 0
        return is_sparse, Carriers(variant[kept], sample[kept], copies[kept])

    @contextmanager
    def _borrowed(self, samples: np.ndarray | None) -> Iterator[Any]:
        """Lend a reader of the samples (ascending; None is all): a reader is not safe to share between threads."""
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = self._open()
        whole = samples is None or len(samples) == self.samples
        reader.change_sample_subset(None if whole else np.asarray(samples, dtype=np.uint32))
        yield reader
        self._idle.append(reader)

    def _damaged(self, first: int, last: int) -> UserError:
        """Say between which variants (0-based) the file cannot be read."""
        where = f"variant {first + 1}" if first == last else f"variants {first + 1} to {last + 1}"
        return UserError(f"{self.path}: damaged at {where}; copy the file again")


class PgenlibFile(GenotypeFile):
    """What .bed and .pgen share: reads through :attr:`reader`."""

    counts_quickly = True
    reader: PgenlibReader

    def hard_calls(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.hard_calls`."""
        return self.reader.calls(columns, samples)

    def genotype_counts(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.genotype_counts`."""
        return self.reader.counts(columns, samples)

    def carriers(self, columns: np.ndarray, flip: np.ndarray, samples: np.ndarray | None, memory: int) -> Carriers:
        """See :meth:`.base.GenotypeFile.carriers`; carriers of a rare ``alt`` are read as they are stored."""
        place_of_sample = np.full(len(self.ids), -1, dtype=np.int32)
        rows = np.arange(len(self.ids)) if samples is None else samples
        place_of_sample[rows] = np.arange(len(rows))
        forward = np.flatnonzero(~flip)
        is_sparse, sparse = self.reader.sparse_carriers(columns[forward], place_of_sample)
        rest = np.ones(len(columns), dtype=bool)
        rest[forward[is_sparse]] = False
        dense = np.flatnonzero(rest)
        parts = [sparse._replace(variant=forward[sparse.variant])]
        for start, stop in self.call_blocks(len(dense), samples, memory):
            block = dense[start:stop]
            carriers = Carriers.of_calls(flipped(self.hard_calls(columns[block], samples), flip[block]))
            parts.append(carriers._replace(variant=block[carriers.variant]))
        return Carriers.joined(parts)
