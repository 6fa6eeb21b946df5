"""What every genotype file offers, whatever its format: :class:`GenotypeFile`.

One module a format implements it: :mod:`.plink1` (.bed), :mod:`.pgen`, :mod:`.bgen`, :mod:`.vcf`. A format must
implement :meth:`GenotypeFile.hard_calls`; it overrides the other methods where it knows a faster way or holds more
(dosages). The words: *samples* are the rows of a file, *participants* those of them that are kept; *columns* number
the variants of one file; *copies* are of the file's ``alt``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from preprocess.genetics.genotypes import twobit

MISSING = -1
# plink2's --hard-call-threshold and the grid on which .pgen stores dosages, in steps of 1/16384.
DOSAGE_STEPS, CALL_DISTANCE = 16384, 1638


class Carriers(NamedTuple):
    """Who does not have 0 copies of the counted allele; entries in the order of the variants asked for.

    Attributes
    ----------
    variant : ndarray of int64, shape (entries,)
        Which of the variants asked for, ascending.
    sample : ndarray of int64, shape (entries,)
    copies : ndarray of int8, shape (entries,)
        1 or 2; negative: the call is missing.
    """

    variant: np.ndarray
    sample: np.ndarray
    copies: np.ndarray

    @classmethod
    def of_calls(cls, calls: np.ndarray) -> Carriers:
        """List the carriers in calls, int8 of shape (variants, samples)."""
        variant, sample = np.nonzero(calls)
        return cls(variant, sample, calls[variant, sample])

    @classmethod
    def joined(cls, parts: list[Carriers]) -> Carriers:
        """Join lists and sort them by variant."""
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
        Participant id of every sample, in file order; blank or negative where withdrawn.
    variants : DataFrame
        One row a variant of the file, in file order: ``chromosome`` (int8; 1..22, 23 for X, 0 for any other), ``id``,
        ``position`` (int64), ``ref`` and ``alt`` (upper case, as the file orders them: which of them is the reference
        is decided in :mod:`.reference`), ``alleles`` (int8, how many).
    provisional : int
        Variants whose ``ref`` the file itself calls a guess.
    has_dosages : bool
        :meth:`dosages` knows more than the hard calls.
    sequential : bool
        Read forwards only: one reader at a time, ascending columns.
    sliced : bool
        :meth:`packed` reads only the bytes of the samples asked for; other formats decode whole variants.
    counts_quickly : bool
        Counting genotypes costs less than reading calls, so it pays to count first and read chosen variants only.
    bytes_per_genotype : int
        Working memory of a read, to size blocks by.
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
        """Read expected copies of ``alt``; where a file has none they are the hard calls.

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
        """List who carries ``alt``, or ``ref`` where `flip` says so.

        Parameters
        ----------
        columns : ndarray of int64, shape (n,)
        flip : ndarray of bool, shape (n,)
        samples : ndarray of int64, shape (m,), optional
        memory : int
            Bytes that a block of calls may take.

        Returns
        -------
        Carriers
            Numbers of variants are places in `columns`, those of samples places in `samples`.
        """
        parts = []
        for start, stop in self.call_blocks(len(columns), samples, memory):
            calls = flipped(self.hard_calls(columns[start:stop], samples), flip[start:stop])
            found = Carriers.of_calls(calls)
            parts.append(found._replace(variant=found.variant + start))
        return Carriers.joined(parts)

    def call_blocks(self, variants: int, samples: np.ndarray | None, memory: int) -> list[tuple[int, int]]:
        """Cut 0..variants into (start, stop) whose hard calls fit into `memory`."""
        people = len(self.ids) if samples is None else len(samples)
        # A block takes a byte a call, its mask another, and the flipped copy one more.
        step = max(1, memory // (4 * max(1, people)))
        return [(start, min(start + step, variants)) for start in range(0, variants, step)]


def flipped(copies: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Turn copies of one allele into copies of the other where `flip` says so; missing stays missing.

    Parameters
    ----------
    copies : ndarray of int8 (negative: missing) or float32 (NaN), shape (variants, samples)
    flip : ndarray of bool, shape (variants,)

    Returns
    -------
    ndarray
        `copies` itself where nothing is flipped.
    """
    if not flip.any():
        return copies
    turned = 2 - copies
    if copies.dtype == np.int8:
        turned = np.where(copies < 0, copies, turned)
    return np.where(flip[:, None], turned, copies)


def counts_of_calls(calls: np.ndarray) -> np.ndarray:
    """Count calls 0, 1, 2 and missing (negative) of every variant: int64, shape (variants, 4)."""
    known = [(calls == copies).sum(axis=1) for copies in (0, 1, 2)]
    return np.stack([*known, calls.shape[1] - sum(known)], axis=1).astype(np.int64)


def as_dosages(copies: np.ndarray) -> np.ndarray:
    """Return hard calls as float32, NaN where they are missing."""
    return np.where(copies < 0, np.float32(np.nan), copies.astype(np.float32))


def on_dosage_grid(dosages: np.ndarray) -> np.ndarray:
    """Round dosages to 1/16384, as plink2 stores them: a file and its PGEN copy then give the same numbers.

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
    """Call genotypes as plink2 does: the nearest whole number if it is within 0.1, else missing.

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
