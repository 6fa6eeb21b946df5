"""PLINK 2 file sets: .pgen, .pvar, .psam (https://www.cog-genomics.org/plink/2.0/formats)."""

from __future__ import annotations

import csv
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from preprocess.genetics.genotypes.companions import read_psam, samples_beside
from preprocess.genetics.genotypes.pgenlib_reader import PgenlibFile, PgenlibReader
from preprocess.genetics.genotypes.tables import variant_table, variant_table_of_columns
from preprocess.genetics.text import NOT_UTF8, read_lines, split_fields

SIDE_BY_SIDE = "the .pgen, .pvar and .psam"
MAGIC = b"\x6c\x1b"
BED_MODE = 1
# Upper two bits of byte 11 of the header: every REF is provisional (PGEN specification, 2.1).
ALL_PROVISIONAL = 2
NEEDED = ("CHROM", "ID", "POS", "REF", "ALT")


class PgenFile(PgenlibFile):
    """A .pgen with its .pvar and .psam.

    Parameters
    ----------
    path : Path
    ids : list of str, optional
        Participants; read from the .psam by default.

    Raises
    ------
    UserError
        A file is missing, malformed or truncated.
    """

    has_dosages = True

    def __init__(self, path: Path, ids: list[str] | None = None) -> None:
        self.path = path
        self.ids = read_psam(samples_beside(path)) if ids is None else ids
        self.variants = read_pvar(path.with_suffix(".pvar"))
        with open(path, "rb") as file:
            self._head = file.read(12)
        if len(self._head) < 12 or self._head[:2] != MAGIC or self._head[2] == BED_MODE:
            raise UserError(f"{path}: is not a .pgen file; make one with plink2 --make-pgen")
        self.reader = PgenlibReader(path, len(self.ids), len(self.variants), self.variants["alleles"].to_numpy())
        # pgenlib detects a truncated file only when reading its end.
        self.hard_calls(np.array([len(self.variants) - 1]))

    @cached_property
    def provisional(self) -> int:  # type: ignore[override]
        """Number of provisional REF alleles, which plink2 took from A2 of a .bed.

        See docs/genetics-pitfalls.md#a1-is-not-the-reference.
        """
        if self._head[11] >> 6 == ALL_PROVISIONAL:
            return len(self.variants)
        return count_provisional(self.path.with_suffix(".pvar"))

    def dosages(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.dosages`."""
        return self.reader.dosages(columns, samples)


def read_pvar(path: Path) -> pd.DataFrame:
    """Return the variants of a .pvar (:attr:`.base.GenotypeFile.variants`).

    A file without a header line has the columns of a .bim: A1 is ALT.

    Raises
    ------
    UserError
        The file is absent, compressed or empty, lacks a column, or a line is malformed.
    """
    quick = _read_pvar_quickly(path)
    if quick is not None:
        return quick
    names, rows, lines = _rows(path)
    of = dict(zip(names, zip(*rows, strict=True), strict=True))
    filters = list(of["FILTER"]) if "FILTER" in of else None
    return variant_table(path, tuple(list(of[name]) for name in NEEDED), lines, filters)


def count_provisional(path: Path) -> int:
    """Count the provisional REF alleles of a .pvar (INFO ``PR``); without a header all are provisional."""
    _, names = _header(path)
    if names and "INFO" not in names:
        return 0
    names, rows, _ = _rows(path)
    if "INFO" not in names:
        return len(rows)
    column = names.index("INFO")
    return sum("PR" in fields[column].split(";") for fields in rows)


def _header(path: Path) -> tuple[int, list[str]]:
    """Return the number of lines before the first variant, and the column names; no names without a header."""
    skip = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line in file:
                if not line.startswith("#"):
                    break
                skip += 1
                if not line.startswith("##"):
                    return skip, line.lstrip("#").split()
    except FileNotFoundError as error:
        packed = path.with_name(path.name + ".zst")
        if packed.exists():
            raise UserError(
                f"{packed}: is compressed; decompress it with plink2 --zst-decompress {packed.name} > {path.name}"
            ) from error
        raise UserError(f"{path}: does not exist; keep {SIDE_BY_SIDE} of a file set side by side") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {NOT_UTF8}") from error
    return skip, []


def _rows(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Return column names, the fields of every variant, and the lines of the variants; check the widths."""
    skip, names = _header(path)
    numbered = [
        (n, line) for n, line in read_lines(path, f"keep {SIDE_BY_SIDE} of a file set side by side") if n > skip
    ]
    if not numbered:
        raise UserError(f"{path}: names no variants; a .pvar has one line per variant")
    lines = [number for number, _ in numbered]
    first = numbered[0][1].split()
    names = names or ("CHROM ID CM POS ALT REF" if len(first) == 6 else "CHROM ID POS ALT REF").split()
    lacking = [name for name in NEEDED if name not in names]
    if lacking or len(set(names)) != len(names):
        what = f"names no column {', '.join(lacking)}" if lacking else "names a column twice"
        raise UserError(f"{path}: line {skip} {what}; make the file again with plink2 --make-pgen")
    rows = [split_fields(line, len(names)) for _, line in numbered]
    for number, fields in zip(lines, rows, strict=True):
        if len(fields) != len(names):
            raise UserError(
                f"{path}: line {number} has {len(fields)} columns, {len(names)} are named; correct the line"
            )
    return names, rows, lines


def _read_pvar_quickly(path: Path) -> pd.DataFrame | None:
    """Read a valid .pvar with the pandas parser; None for any other file, which the caller reads line by line."""
    skip, names = _header(path)
    if not names or any(name not in names for name in NEEDED) or len(set(names)) != len(names):
        return None
    columns = {"CHROM": "chromosome", "POS": "position", "ID": "id", "REF": "ref", "ALT": "alt"}
    columns |= {"FILTER": "filter"} if "FILTER" in names else {}
    try:
        table = pd.read_csv(
            path,
            sep="\t",
            skiprows=skip,
            header=None,
            names=[*names, "beyond"],
            dtype={**dict.fromkeys([*names, "beyond"], "category"), "ID": object, "POS": np.int64},
            na_filter=False,
            skip_blank_lines=False,
            quoting=csv.QUOTE_NONE,
        )
    except (OSError, ValueError, OverflowError, pd.errors.ParserError):
        return None
    # pandas pads short lines with empty fields. If all lines are too long, pandas uses the first column as index.
    odd = (table[names[-1]] == "").any() or (table["beyond"] != "").any()
    if odd or not isinstance(table.index, pd.RangeIndex):
        return None
    return variant_table_of_columns(table[list(columns)].rename(columns=columns))
