"""Reads .bed and .pgen through pgenlib: calls, dosages, counts, sparse records.

pgenlib counts A1 copies (.bim column 5) of a .bed and ALT copies of a .pgen. Missing calls and dosages are -9. pgenlib
accepts samples in ascending order only.

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
    """Open readers of one file, one per concurrent thread.

    Parameters
    ----------
    path : Path
    samples, variants : int
        Numbers of samples and variants in the companion files (.fam and .bim, or .psam and .pvar).
    allele_counts : ndarray of int8, shape (variants,)
        Number of alleles of each variant; the .pgen itself does not tell which sites are multi-allelic.

    Raises
    ------
    UserError
        The file holds other numbers of samples or variants.
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
                f"{self.path}: does not hold {self.samples} samples x {self.variants} variants as its companion files; "
                "it is truncated or they belong to another file"
            ) from error

    def calls(self, columns: np.ndarray, samples: np.ndarray | None) -> np.ndarray:
        """Read hard calls; see :meth:`.base.GenotypeFile.hard_calls`."""
        out = self._read("read_list", columns, samples, np.int8)
        np.clip(out, MISSING, 2, out=out)  # ten times faster than np.maximum
        return out

    def dosages(self, columns: np.ndarray, samples: np.ndarray | None) -> np.ndarray:
        """Read dosages; see :meth:`.base.GenotypeFile.dosages`."""
        out = self._read("read_dosages_list", columns, samples, np.float32)
        # A -9 that is not masked makes sums wrong without an error.
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
        """Count genotypes without unpacking; see :meth:`.base.GenotypeFile.genotype_counts`."""
        counts = np.empty((len(columns), 4), dtype=np.uint32)
        column = 0
        with self._borrowed(None if samples is None else np.sort(samples)) as reader:
            try:
                for row, column in zip(counts, columns.tolist(), strict=True):
                    reader.count(column, row)
            except (RuntimeError, OSError) as error:
                raise self._damaged(column, column) from error
        return counts.astype(np.int64)

    def sparse_carriers(self, columns: np.ndarray, index_of_sample: np.ndarray) -> tuple[np.ndarray, Carriers]:
        """List the carriers of variants that a .pgen stores as lists of carriers (rare ALT).

        Parameters
        ----------
        columns : ndarray of int64, shape (n,)
        index_of_sample : ndarray of int32, shape (samples of the file,)
            Index of a sample in the result; -1 excludes the sample.

        Returns
        -------
        is_sparse : ndarray of bool, shape (n,)
            Variants stored as lists of carriers; the other variants are not in the result.
        Carriers
        """
        is_sparse = np.zeros(len(columns), dtype=bool)
        lists = []
        column = 0
        with self._borrowed(None) as reader:  # sparse reads do not support a subset of samples
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
        sample = index_of_sample[rows].astype(np.int64)
        kept = sample >= 0
        return is_sparse, Carriers(variant[kept], sample[kept], copies[kept])

    @contextmanager
    def _borrowed(self, samples: np.ndarray | None) -> Iterator[Any]:
        """Yield a reader of the samples (ascending; None is all) for one thread: a reader is not thread-safe."""
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = self._open()
        whole = samples is None or len(samples) == self.samples
        reader.change_sample_subset(None if whole else np.asarray(samples, dtype=np.uint32))
        yield reader
        self._idle.append(reader)

    def _damaged(self, first: int, last: int) -> UserError:
        """Return the error of an unreadable range of variants (0-based)."""
        variants = f"variant {first + 1}" if first == last else f"variants {first + 1} to {last + 1}"
        return UserError(f"{self.path}: damaged at {variants}; copy the file again")


class PgenlibFile(GenotypeFile):
    """Base class of .bed and .pgen files, which are read through :attr:`reader`."""

    counts_quickly = True
    reader: PgenlibReader

    def hard_calls(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.hard_calls`."""
        return self.reader.calls(columns, samples)

    def genotype_counts(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.genotype_counts`."""
        return self.reader.counts(columns, samples)

    def carriers(self, columns: np.ndarray, flip: np.ndarray, samples: np.ndarray | None, memory: int) -> Carriers:
        """See :meth:`.base.GenotypeFile.carriers`; carriers of a rare ``alt`` are read from sparse records."""
        index_of_sample = np.full(len(self.ids), -1, dtype=np.int32)
        rows = np.arange(len(self.ids)) if samples is None else samples
        index_of_sample[rows] = np.arange(len(rows))
        forward = np.flatnonzero(~flip)
        is_sparse, sparse = self.reader.sparse_carriers(columns[forward], index_of_sample)
        rest = np.ones(len(columns), dtype=bool)
        rest[forward[is_sparse]] = False
        dense = np.flatnonzero(rest)
        parts = [sparse._replace(variant=forward[sparse.variant])]
        for start, stop in self.call_blocks(len(dense), samples, memory):
            block = dense[start:stop]
            carriers = Carriers.of_calls(flipped(self.hard_calls(columns[block], samples), flip[block]))
            parts.append(carriers._replace(variant=block[carriers.variant]))
        return Carriers.joined(parts)
