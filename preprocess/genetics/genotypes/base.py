"""The interface of a genotype file of any format: :class:`GenotypeFile`.

One module per format implements the interface: :mod:`.plink1` (.bed), :mod:`.pgen`, :mod:`.bgen`, :mod:`.vcf`. A format
must implement :meth:`GenotypeFile.hard_calls`. A format overrides the other methods if it has a faster way or dosages.

Terms: *samples* are the rows of a file; *participants* are the included samples; *columns* are the indices of the
variants of one file; *copies* are copies of the file's ``alt`` allele.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from preprocess.genetics.genotypes import twobit

MISSING = -1
# plink2's --hard-call-threshold in steps of 1/16384, the resolution of dosages in a .pgen.
DOSAGE_STEPS, CALL_DISTANCE = 16384, 1638


class Carriers(NamedTuple):
    """Samples with at least one copy of the counted allele, or without a call; one entry per variant and sample.

    Attributes
    ----------
    variant : ndarray of int64, shape (entries,)
        Index into the requested variants, ascending.
    sample : ndarray of int64, shape (entries,)
    copies : ndarray of int8, shape (entries,)
        1 or 2; negative: the call is missing.
    """

    variant: np.ndarray
    sample: np.ndarray
    copies: np.ndarray

    @classmethod
    def of_calls(cls, calls: np.ndarray) -> Carriers:
        """Return the carriers of calls, int8 of shape (variants, samples)."""
        variant, sample = np.nonzero(calls)
        return cls(variant, sample, calls[variant, sample])

    @classmethod
    def joined(cls, parts: list[Carriers]) -> Carriers:
        """Concatenate lists of carriers and sort the entries by variant."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls(np.array([], np.int64), np.array([], np.int64), np.array([], np.int8))
        joined = cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
        order = np.argsort(joined.variant, kind="stable")
        return cls(*(column[order] for column in joined))


class GenotypeFile(ABC):
    """One genotype file.

    Attributes
    ----------
    path : Path
    ids : list of str
        Participant id of every sample, in file order; blank or negative for a withdrawn participant.
    variants : DataFrame
        One row per variant, in file order: ``chromosome`` (int8; 1..22, 23 for X, 0 for any other), ``id``,
        ``position`` (int64), ``ref`` and ``alt`` (upper case, in the order of the file: :mod:`.reference` decides which
        allele is the reference; ``.``, or ``0`` in a .bim: no sample has the allele), ``alleles`` (int16), ``passes``
        (bool; False: FILTER names a filter that the variant fails).
    provisional : int
        Number of variants whose ``ref`` is provisional in the file.
    has_dosages : bool
        :meth:`dosages` returns more than the hard calls.
    sequential : bool
        Files can be read forwards only: one reader at a time, ascending columns.
    sliced : bool
        :meth:`packed` reads only the bytes of the requested samples; other formats decode complete variants.
    counts_quickly : bool
        Counting genotypes is faster than reading calls: callers count first and read selected variants only.
    bytes_per_genotype : int
        Working memory of a read per genotype, for the size of blocks.
    """

    path: Path
    ids: list[str]
    variants: pd.DataFrame
    provisional: int = 0
    has_dosages: bool = False
    sequential: bool = False
    sliced: bool = False
    counts_quickly: bool = False
    bytes_per_genotype: int = 8

    @abstractmethod
    def hard_calls(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """Read copies of ``alt``.

        Parameters
        ----------
        columns : ndarray of int64, shape (n,)
            Rows of ``variants``; ascending is fastest.
        samples : ndarray of int64, shape (m,), optional
            Rows of the file, in any order; all by default.

        Returns
        -------
        ndarray of int8, shape (n, m)
            0, 1, 2; -1 is missing.
        """

    def dosages(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """Read expected copies of ``alt``; hard calls if the file has no dosages.

        Returns
        -------
        ndarray of float32, shape (n, m)
            0..2; NaN is missing.
        """
        return as_dosages(self.hard_calls(columns, samples))

    def packed(self, columns: np.ndarray, flip: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Read two-bit codes of chosen samples.

        Parameters
        ----------
        columns : ndarray of int64, shape (n,)
        flip : ndarray of bool, shape (n,)
            Count ``ref`` instead of ``alt``.
        samples : ndarray of int64, shape (m,)

        Returns
        -------
        ndarray of uint8, shape (n, twobit.width(m))
        """
        return twobit.pack(flipped(self.hard_calls(columns, samples), flip))

    def genotype_counts(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """Count samples with 0, 1, 2 copies of ``alt``, and without a call: int64, shape (n, 4)."""
        return counts_of_calls(self.hard_calls(columns, samples))

    def carriers(self, columns: np.ndarray, flip: np.ndarray, samples: np.ndarray | None, memory: int) -> Carriers:
        """List the carriers of ``alt``, or of ``ref`` for flipped variants.

        Parameters
        ----------
        columns : ndarray of int64, shape (n,)
        flip : ndarray of bool, shape (n,)
            Count ``ref`` instead of ``alt``.
        samples : ndarray of int64, shape (m,), optional
        memory : int
            Maximum size of a block of calls in bytes.

        Returns
        -------
        Carriers
            Variants are indices into `columns`; samples are indices into `samples`.
        """
        parts = []
        for start, stop in self.call_blocks(len(columns), samples, memory):
            calls = flipped(self.hard_calls(columns[start:stop], samples), flip[start:stop])
            carriers = Carriers.of_calls(calls)
            parts.append(carriers._replace(variant=carriers.variant + start))
        return Carriers.joined(parts)

    def call_blocks(self, variants: int, samples: np.ndarray | None, memory: int) -> list[tuple[int, int]]:
        """Cut 0..variants into ranges (start, stop) whose hard calls fit into `memory`."""
        count = len(self.ids) if samples is None else len(samples)
        # A block takes one byte per call, the mask another byte, and the flipped copy one more.
        step = max(1, memory // (4 * max(1, count)))
        return [(start, min(start + step, variants)) for start in range(0, variants, step)]


def flipped(copies: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Convert copies of one allele into copies of the other for flipped variants; missing calls stay missing.

    Parameters
    ----------
    copies : ndarray of int8 (negative: missing) or float32 (NaN), shape (variants, samples)
    flip : ndarray of bool, shape (variants,)

    Returns
    -------
    ndarray
        `copies` itself if no variant is flipped.
    """
    if not flip.any():
        return copies
    other = 2 - copies
    if copies.dtype == np.int8:
        other = np.where(copies < 0, copies, other)
    return np.where(flip[:, None], other, copies)


def counts_of_calls(calls: np.ndarray) -> np.ndarray:
    """Count calls 0, 1, 2 and missing (negative) of every variant: int64, shape (variants, 4)."""
    known = [(calls == copies).sum(axis=1) for copies in (0, 1, 2)]
    return np.stack([*known, calls.shape[1] - sum(known)], axis=1).astype(np.int64)


def as_dosages(copies: np.ndarray) -> np.ndarray:
    """Return hard calls as float32; missing calls are NaN."""
    return np.where(copies < 0, np.float32(np.nan), copies.astype(np.float32))


def on_dosage_grid(dosages: np.ndarray) -> np.ndarray:
    """Round dosages to 1/16384, as plink2 stores dosages: a file and its PGEN copy give the same numbers.

    Parameters
    ----------
    dosages : ndarray of float, shape (...)
        0..2; NaN is missing.

    Returns
    -------
    ndarray of float32
    """
    return (np.floor(np.asarray(dosages, dtype=np.float64) * DOSAGE_STEPS + 0.5) / DOSAGE_STEPS).astype(np.float32)


def hard_calls_of(dosages: np.ndarray) -> np.ndarray:
    """Call genotypes as plink2 does: the nearest integer within 0.1, otherwise missing.

    Parameters
    ----------
    dosages : ndarray of float, shape (variants, samples)
        NaN is missing.

    Returns
    -------
    ndarray of int8, shape (variants, samples)
    """
    known = ~np.isnan(dosages)
    steps = np.floor(np.where(known, dosages, 0) * DOSAGE_STEPS + 0.5).astype(np.int32)
    nearest = (steps + DOSAGE_STEPS // 2) // DOSAGE_STEPS
    sure = known & (np.abs(steps - nearest * DOSAGE_STEPS) <= CALL_DISTANCE)
    return np.where(sure, nearest, MISSING).astype(np.int8)
