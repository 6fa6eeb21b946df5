"""PLINK 2 file sets: .pgen, .pvar, .psam (https://www.cog-genomics.org/plink/2.0/formats)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pgenlib

from mrmfast.errors import UserError
from preprocess.genetics.genotypes.base import MISSING, GenotypeFile, read_text, variant_table

SIDE_BY_SIDE = "the .pgen, .pvar and .psam"
MAGIC = b"\x6c\x1b"
BED_MODE = 1
# Upper two bits of byte 11 of the header: every REF is provisional (PGEN specification, 2.1).
ALL_PROVISIONAL = 2


class PgenFile(GenotypeFile):
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

    def __init__(self, path: Path, ids: list[str] | None = None) -> None:
        self.path = path
        self.ids = read_psam(path.with_suffix(".psam")) if ids is None else ids
        self.variants, self.provisional = read_pvar(path.with_suffix(".pvar"))
        with open(path, "rb") as file:
            head = file.read(12)
        if len(head) < 12 or head[:2] != MAGIC or head[2] == BED_MODE:
            raise UserError(f"{path}: is not a .pgen file; make one with plink2 --make-pgen")
        if head[11] >> 6 == ALL_PROVISIONAL:
            self.provisional = len(self.variants)
        reader = self._open()
        counted = (reader.get_raw_sample_ct(), reader.get_variant_ct())
        if counted != (len(self.ids), len(self.variants)):
            raise UserError(
                f"{path}: holds {counted[0]} samples x {counted[1]} variants, its .psam and .pvar name "
                f"{len(self.ids)} x {len(self.variants)}; they belong to other files"
            )
        # The reader notices a truncated file only where it ends.
        self.copies(np.array([len(self.variants) - 1]))

    def _open(self) -> Any:
        # Positions of further alleles; the reader cannot know which sites are multi-allelic without them.
        offsets = np.r_[0, np.cumsum(self.variants["alleles"])].astype(np.uintp)
        multi = {"allele_idx_offsets": offsets} if (self.variants["alleles"] > 2).any() else {}
        try:
            return pgenlib.PgenReader(str(self.path).encode(), len(self.ids), variant_ct=len(self.variants), **multi)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{self.path}: {_reason(error)}; its .psam/.pvar must be its own, or copy it again"
            ) from error

    def copies(self, columns: np.ndarray) -> np.ndarray:
        """See :meth:`GenotypeFile.copies`; pgenlib writes -9 for missing.

        See docs/genetics-pitfalls.md#missing-codes.
        """
        out = np.empty((len(columns), len(self.ids)), dtype=np.int8)
        self._read("read_list", columns, out)
        np.maximum(out, MISSING, out=out)
        return out

    def dosages(self, columns: np.ndarray) -> np.ndarray:
        """See :meth:`GenotypeFile.dosages`; pgenlib writes -9 here too, which would ruin a sum."""
        out = np.empty((len(columns), len(self.ids)), dtype=np.float32)
        self._read("read_dosages_list", columns, out)
        out[out < 0] = np.nan
        return out

    def _read(self, method: str, columns: np.ndarray, out: np.ndarray) -> None:
        # A reader each call: they are not safe to share between threads, and opening one costs microseconds.
        with self._open() as reader:
            try:
                getattr(reader, method)(columns.astype(np.uint32), out, allele_idx=1)
            except (RuntimeError, OSError) as error:
                raise UserError(
                    f"{self.path}: cannot be read between variants {columns.min() + 1} and {columns.max() + 1} "
                    f"({_reason(error)}); copy it again"
                ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).removeprefix("b'").rstrip("'") or type(error).__name__


def read_psam(path: Path) -> list[str]:
    """Return the IID of every sample; without a header the file reads like a .fam.

    Raises
    ------
    UserError
        The file is absent or empty, or a line lacks columns.
    """
    lines = read_text(path, SIDE_BY_SIDE).splitlines()
    header = ["#FID", "IID", "FATHER", "MOTHER", "SEX", "PHENOTYPE"]
    skipped = next((number for number, line in enumerate(lines) if not line.startswith("##")), len(lines))
    if skipped < len(lines) and lines[skipped].startswith("#"):
        header, skipped = lines[skipped].split(), skipped + 1
    if "IID" not in (names := [name.lstrip("#") for name in header]):
        raise UserError(
            f"{path}: line {skipped} names no column IID; the header of a .psam begins with #IID or #FID IID"
        )
    column, ids = names.index("IID"), []
    for number, line in enumerate(lines[skipped:], start=1 + skipped):
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != len(header):
            raise UserError(f"{path}: line {number} has {len(fields)} columns, {len(header)} are named; mend the line")
        ids.append(fields[column].strip())
    if not ids:
        raise UserError(f"{path}: names no samples; a .psam has one line per sample")
    return ids


def read_pvar(path: Path) -> tuple[pd.DataFrame, int]:
    """Read a .pvar; without a header it reads like a .bim (A1 is ALT).

    Returns
    -------
    DataFrame
        As :attr:`GenotypeFile.variants`.
    int
        How many REF alleles plink2 calls provisional (INFO ``PR``: taken from A2 of a .bed).

        See docs/genetics-pitfalls.md#a1-is-not-the-reference.

    Raises
    ------
    UserError
        The file is absent, compressed or empty, or lacks a column.
    """
    packed = path.with_name(path.name + ".zst")
    if not path.exists() and packed.exists():
        raise UserError(
            f"{packed}: is compressed; write it out with plink2 --zst-decompress {packed.name} > {path.name}"
        )
    lines = read_text(path, SIDE_BY_SIDE).splitlines()
    first = next((n for n, line in enumerate(lines) if not line.startswith("##")), len(lines))
    names: list[str] = []
    if first < len(lines) and lines[first].startswith("#"):
        names, first = lines[first].lstrip("#").split(), first + 1
    rows = [line.split() for line in lines[first:]]
    if not rows:
        raise UserError(f"{path}: names no variants; a .pvar has one line per variant")
    names_given = bool(names)
    names = names or ("CHROM ID CM POS ALT REF" if len(rows[0]) == 6 else "CHROM ID POS ALT REF").split()
    lacking = [name for name in ("CHROM", "POS", "ID", "REF", "ALT") if name not in names]
    if lacking:
        raise UserError(f"{path}: has no column {', '.join(lacking)}; make the file again with plink2 --make-pgen")
    for number, fields in enumerate(rows, start=first + 1):
        if len(fields) != len(names):
            raise UserError(f"{path}: line {number} has {len(fields)} columns, {len(names)} are named; mend the line")
    of = dict(zip(names, zip(*rows, strict=True), strict=True))
    chromosome, ids, position, ref, alt = (list(of[name]) for name in ("CHROM", "ID", "POS", "REF", "ALT"))
    provisional = sum("PR" in info.split(";") for info in of["INFO"]) if "INFO" in of else 0
    return variant_table(path, chromosome, ids, position, ref, alt, first + 1), provisional if names_given else len(
        rows
    )
