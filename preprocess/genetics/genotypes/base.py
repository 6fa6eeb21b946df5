"""What every genotype file offers, whatever its format."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from preprocess.genetics.genotypes import twobit

AUTOSOMES = {str(number): number for number in range(1, 23)}
MISSING = -1
LAST_POSITION = 2**31 - 1
# plink2's --hard-call-threshold and the grid on which .pgen stores dosages, in steps of 1/16384.
DOSAGE_STEPS, CALL_DISTANCE = 16384, 1638


def autosome(label: str) -> int:
    """Return 1..22 for an autosome's label, with or without ``chr``; 0 for any other chromosome.

    See docs/genetics-pitfalls.md#chromosome-codes.
    """
    bare = label[3:] if label[:3].lower() == "chr" else label
    return AUTOSOMES.get(bare.lstrip("0"), 0)


def natural_key(path: Path) -> list[int | str]:
    """Sort key that puts chr2 before chr10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


class GenotypeFile(ABC):
    """One genotype file.

    Attributes
    ----------
    path : Path
    ids : list of str
        Participant id of every sample, in file order; blank or negative where withdrawn.
    variants : DataFrame
        One row a variant of the file, in file order: ``chromosome`` (int8, 0: not an autosome), ``id``, ``position``
        (int64), ``ref`` and ``alt`` (upper case, as the file orders them: what counts as the reference is decided
        in :mod:`.reference`), ``alleles`` (int8, how many).
    provisional : int
        Variants whose ``ref`` the file itself calls a guess.
    sequential : bool
        Reads only forwards: one reader at a time, ascending.
    sliced : bool
        :meth:`packed` reads only the bytes of the samples asked for; other formats decode whole variants.
    bytes_per_genotype : int
        Working memory of a read, to size blocks by.
    """

    path: Path
    ids: list[str]
    variants: pd.DataFrame
    provisional: int = 0
    sequential: bool = False
    sliced: bool = False
    bytes_per_genotype: int = 8

    @abstractmethod
    def copies(self, columns: np.ndarray) -> np.ndarray:
        """Read copies of ``alt``.

        Parameters
        ----------
        columns : ndarray of int64, shape (n,)
            Rows of ``variants``; ascending is fastest.

        Returns
        -------
        ndarray of int8, shape (n, samples)
            0, 1, 2; -1 is missing.
        """

    def dosages(self, columns: np.ndarray) -> np.ndarray:
        """Read expected copies of ``alt``; where a file has none they are the hard calls.

        Returns
        -------
        ndarray of float32, shape (n, samples)
            0..2; NaN is missing.
        """
        return as_dosages(self.copies(columns))

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
        return twobit.pack(flipped(self.copies(columns)[:, samples], flip))


def flipped(copies: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Turn counts of one allele into counts of the other where `flip` says so; missing stays missing.

    Parameters
    ----------
    copies : ndarray of int8 (negative: missing) or float32 (NaN), shape (variants, samples)
    flip : ndarray of bool, shape (variants,)
    """
    turned = 2 - copies
    if copies.dtype == np.int8:
        turned = np.where(copies < 0, copies, turned)
    return np.where(flip[:, None], turned, copies)


def as_dosages(copies: np.ndarray) -> np.ndarray:
    """Return hard calls as float32, NaN where they are missing."""
    return np.where(copies < 0, np.float32(np.nan), copies.astype(np.float32))


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


def read_text(path: Path, beside: str) -> str:
    """Read a small text file; `beside` says in the message what must lie side by side.

    Raises
    ------
    UserError
        Absent, or not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist; keep {beside} of a file set side by side") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text; copy it again from the source") from error


def variant_table(
    path: Path,
    chromosome: list[str],
    ids: list[str],
    position: list[str],
    ref: list[str],
    alt: list[str],
    first: int,
    code_of: Callable[[str], int] = autosome,
) -> pd.DataFrame:
    """Build :attr:`GenotypeFile.variants` from columns of text.

    Parameters
    ----------
    first : int
        Line number of the first row.
    code_of : callable
        From a chromosome's label to its code.

    Raises
    ------
    UserError
        A position is not a whole number from 0 on.
    """
    label_of = {label: code_of(label) for label in set(chromosome)}
    try:
        places = np.array(position).astype(np.int64)
        wrong = np.flatnonzero((places < 0) | (places > LAST_POSITION)).tolist()
    except (ValueError, OverflowError):
        wrong = [next(n for n, text in enumerate(position) if not re.fullmatch(r"\+?\d{1,10}", text))]
    if wrong:
        raise UserError(
            f"{path}: line {first + wrong[0]}: the position is not a whole number from 0 to {LAST_POSITION}; "
            "mend the line"
        )
    return pd.DataFrame(
        {
            "chromosome": np.array([label_of[label] for label in chromosome], dtype=np.int8),
            "id": np.array(ids, dtype=object),
            "position": places,
            "ref": np.array([allele.upper() for allele in ref], dtype=object),
            "alt": np.array([allele.upper() for allele in alt], dtype=object),
            "alleles": np.array([2 + allele.count(",") for allele in alt], dtype=np.int8),
        }
    )
