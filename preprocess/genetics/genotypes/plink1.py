"""PLINK 1 file sets: .bed, .bim, .fam (https://www.cog-genomics.org/plink/1.9/formats)."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from preprocess.genetics.genotypes import twobit, twobit_cpu
from preprocess.genetics.genotypes.companions import read_fam, samples_beside, variants_beside
from preprocess.genetics.genotypes.pgenlib_reader import PgenlibFile, PgenlibReader
from preprocess.genetics.genotypes.tables import variant_table, variant_table_of_columns
from preprocess.genetics.text import read_lines

SIDE_BY_SIDE = "the .bed, .bim and .fam"
MAGIC = b"\x6c\x1b\x01"
PADDING = 64  # bytes; a line of the cache


class BedFile(PgenlibFile):
    """A .bed with its .bim and .fam; ``ref`` is A2 and ``alt`` A1 until :mod:`.reference` says otherwise.

    Parameters
    ----------
    path : Path
    ids : list of str, optional
        Participants; read from the .fam by default.

    Raises
    ------
    UserError
        A file is missing, malformed or truncated.
    """

    sliced = True
    bytes_per_genotype = 2

    def __init__(self, path: Path, ids: list[str] | None = None) -> None:
        self.path = path
        self.ids = read_fam(samples_beside(path)) if ids is None else ids
        self.variants = read_bim(variants_beside(path, ".bim"))
        self.row_bytes = twobit.width(len(self.ids))
        with open(path, "rb") as file:
            magic = file.read(3)
        if magic != MAGIC:
            raise UserError(f"{path}: is not a variant-major PLINK 1 .bed file; make one with plink2 --make-bed")
        # The size is checked here, because a read of a truncated .bed may fail late or not at all.
        expected, size = 3 + len(self.variants) * self.row_bytes, path.stat().st_size
        if expected != size:
            raise UserError(
                f"{path}: has {size} bytes, {len(self.ids)} samples x {len(self.variants)} variants need {expected}; "
                "it is truncated or its .bim/.fam belong to another file"
            )
        self.reader = PgenlibReader(path, len(self.ids), len(self.variants), self.variants["alleles"].to_numpy())

    def packed(self, columns: np.ndarray, flip: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.packed`; reads only the bytes from the first to the last requested sample."""
        first, last = int(samples.min()) // 4, int(samples.max()) // 4 + 1
        raw = read_rows(self.path, len(MAGIC), self.row_bytes, columns, first, last)
        return twobit.select(twobit_cpu.from_plink1(raw, ~flip), samples - 4 * first)


def read_rows(path: Path, offset: int, row_bytes: int, columns: np.ndarray, first: int, last: int) -> np.ndarray:
    """Read bytes first..last of selected rows of a file with rows of equal length.

    The function uses reads, not a memory map: mapped pages would count as resident memory of this process.

    Parameters
    ----------
    path : Path
    offset : int
        First byte of row 0.
    row_bytes : int
    columns : ndarray of int64, shape (n,)
        Row numbers.

    Returns
    -------
    ndarray of uint8, shape (n, last - first)

    Raises
    ------
    UserError
        The file became shorter while it was read.
    """
    # The padding avoids strides of a power of two, which map to few cache lines during the transpose.
    raw = np.empty((len(columns), last - first + PADDING), dtype=np.uint8)[:, : last - first]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        read = twobit_cpu.read_rows(descriptor, offset + first, row_bytes, columns, raw)
        if read is None:
            read = _read_plainly(descriptor, offset + first, row_bytes, columns, raw)
    finally:
        os.close(descriptor)
    if read < len(columns):
        raise UserError(f"{path}: became shorter while it was read; check whether another program changes it")
    return raw


def _read_plainly(descriptor: int, offset: int, row_bytes: int, columns: np.ndarray, out: np.ndarray) -> int:
    """As :func:`.twobit_cpu.read_rows`."""
    for row, column in enumerate(columns.tolist()):
        done = 0
        while done < out.shape[1]:
            got = os.preadv(descriptor, [out[row, done:].data], offset + column * row_bytes + done)
            if not got:
                return row
            done += got
    return len(columns)


def read_bim(path: Path) -> pd.DataFrame:
    """Return the variants of a .bim (:attr:`.base.GenotypeFile.variants`): ``ref`` is column 6 (A2), ``alt`` 5 (A1).

    Raises
    ------
    UserError
        The file is absent or empty, or a line has not 6 columns or no whole-number position.
    """
    quick = _read_bim_quickly(path)
    if quick is not None:
        return quick
    numbered = read_lines(path, f"keep {SIDE_BY_SIDE} of a file set in one folder")
    lines = [line.split() for _, line in numbered]
    for (number, _), fields in zip(numbered, lines, strict=True):
        if len(fields) != 6:
            raise UserError(
                f"{path}: line {number} has {len(fields)} columns, a .bim has 6 "
                "(chromosome id cM position A1 A2); correct the line"
            )
    if not lines:
        raise UserError(f"{path}: is empty; a .bim has one line per variant")
    chromosome, ids, _, position, a1, a2 = (list(column) for column in zip(*lines, strict=True))
    numbers = [number for number, _ in numbered]
    return variant_table(path, (chromosome, ids, position, a2, a1), numbers)


def _read_bim_quickly(path: Path) -> pd.DataFrame | None:
    """Read a valid .bim with the pandas parser; None for any other file, which the caller reads line by line."""
    categories = dict.fromkeys(("chromosome", "alt", "ref", "seventh"), "category")
    try:
        table = pd.read_csv(
            path,
            sep=r"\s+",
            header=None,
            names=["chromosome", "id", "morgans", "position", "alt", "ref", "seventh"],
            dtype={**categories, "id": object, "morgans": object, "position": np.int64},
            na_filter=False,
            skip_blank_lines=False,
            quoting=csv.QUOTE_NONE,
        )
    except (OSError, ValueError, OverflowError, pd.errors.ParserError):
        return None
    # pandas pads short lines with empty fields; a seventh field means a long line. If all lines are too long, pandas
    # uses the first column as index.
    if (table["ref"] == "").any() or (table["seventh"] != "").any() or not isinstance(table.index, pd.RangeIndex):
        return None
    return variant_table_of_columns(table)
