"""Dosages and hard calls of PLINK file sets (.bed, .pgen), variant by variant: what scores and burden are made from.

``pgs`` and ``burden`` ask no more of a reader than :class:`Genotypes`. :class:`PlinkFiles` is one over pgenlib, which
reads .bed and .pgen alike and counts ALT copies of a .pgen and A1 copies (.bim column 5) of a .bed. For scores and
carriers the names ``ref`` and ``alt`` only say which allele is counted; weights are signed to fit.

See docs/genetics-pitfalls.md#a1-is-not-the-reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pgenlib

from mrmfast.errors import UserError
from preprocess.genetics import cohort
from preprocess.genetics.genotypes.base import autosome, natural_key
from preprocess.genetics.genotypes.pgen import read_psam
from preprocess.genetics.genotypes.plink1 import read_bim, read_fam

X_CHROMOSOME = 23
X_LABELS = {"X", "23", "XY", "25", "PAR1", "PAR2"}  # PLINK's codes; the PGS Catalog calls all of them X


class Genotypes(Protocol):
    """Genotypes of one cohort, read in blocks.

    Attributes
    ----------
    samples : ndarray of str, shape (participants,)
        Withdrawn and unlisted ones are left out.
    variants : DataFrame
        ``chromosome`` (integer: 1-22, 23 for X, 0 for any other), ``position`` (int64), ``id``, ``ref``, ``alt``.
    """

    samples: np.ndarray
    variants: pd.DataFrame

    def hard_calls(self, variant_rows: np.ndarray, sample_rows: np.ndarray | None = None) -> np.ndarray:
        """Read copies of ``alt``: int8, shape (variants, participants), negative is missing."""

    def dosages(self, variant_rows: np.ndarray, sample_rows: np.ndarray | None = None) -> np.ndarray:
        """Read expected copies of ``alt``: float32, shape (variants, participants), NaN is missing."""


def chromosome_code(label: str) -> int:
    """Return 1..22 for an autosome, 23 for X and its pseudo-autosomal ends, 0 for any other chromosome.

    See docs/genetics-pitfalls.md#chromosome-codes.
    """
    bare = label[3:] if label[:3].lower() == "chr" else label
    return X_CHROMOSOME if bare.upper() in X_LABELS else autosome(bare)


class PlinkFiles:
    """One or several .bed or .pgen file sets with the same participants (:class:`Genotypes`).

    Parameters
    ----------
    source : Path
        A file, or a folder of them (e.g. one per chromosome).
    keep : Path, optional
        List of participants to keep.

    Raises
    ------
    UserError
        A file is missing, malformed or truncated, or two files hold different participants.
    """

    def __init__(self, source: Path, keep: Path | None = None) -> None:
        self.files = find_files(source)
        named = [path.with_suffix(".fam" if path.suffix == ".bed" else ".psam") for path in self.files]
        ids = [read_fam(path) if path.suffix == ".fam" else read_psam(path) for path in named]
        chosen, self.counts = cohort.select(ids[0], keep, named[0])
        self.samples = np.array(ids[0], dtype=object)[chosen]
        self.raw_samples = [len(names) for names in ids]
        self.rows = [chosen]
        if len(ids) > 1:
            everyone, others = cohort.everyone(ids[0]), zip(ids[1:], named[1:], strict=True)
            self.rows += [cohort.locate(self.samples, names, everyone, path) for names, path in others]
        # File row -> participant, for sparse reads; -1 is nobody.
        self.participant_of = np.full((len(self.files), max(self.raw_samples)), -1, dtype=np.int32)
        for number, rows in enumerate(self.rows):
            self.participant_of[number, rows] = np.arange(len(rows))
        tables = [read_variants(path).assign(file=number) for number, path in enumerate(self.files)]
        self.first_variant = np.r_[0, np.cumsum([len(table) for table in tables])]
        self.variants = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
        self.readers = [_open(*one) for one in zip(self.files, ids, tables, strict=True)]

    def hard_calls(self, variant_rows: np.ndarray, sample_rows: np.ndarray | None = None) -> np.ndarray:
        """Read copies of ``alt``: int8, shape (variants, participants), -9 is missing."""
        return self._read(variant_rows, sample_rows, np.int8)

    def dosages(self, variant_rows: np.ndarray, sample_rows: np.ndarray | None = None) -> np.ndarray:
        """Read expected copies of ``alt``: float32, shape (variants, participants), NaN is missing."""
        values = self._read(variant_rows, sample_rows, np.float32)
        # pgenlib writes -9 here too; unmasked it would silently ruin a sum.
        # docs/genetics-pitfalls.md#missing-codes
        if values.size and values.min() < 0:
            values[values < 0] = np.nan
        return values

    def _read(self, variant_rows: np.ndarray, sample_rows: np.ndarray | None, dtype: type) -> np.ndarray:
        width = len(self.samples) if sample_rows is None else len(sample_rows)
        out: np.ndarray = np.empty((len(variant_rows), width), dtype=dtype)
        file_of, column_of = self._place(variant_rows)
        for places in np.split(np.arange(len(variant_rows)), np.flatnonzero(np.diff(file_of)) + 1):
            if not len(places):
                continue
            number = int(file_of[places[0]])
            rows = self.rows[number] if sample_rows is None else self.rows[number][sample_rows]
            columns = column_of[places].astype(np.uint32)
            block = slice(int(places[0]), int(places[-1]) + 1)
            self._read_file(number, rows, columns, out[block])
        return out

    def _read_file(self, number: int, rows: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
        """Read from one file; pgenlib takes samples in ascending order only."""
        reader = self.readers[number]
        order = np.argsort(rows, kind="stable")
        ascending = bool((order == np.arange(len(order))).all())
        reader.change_sample_subset(None if len(rows) == self.raw_samples[number] else rows[order].astype(np.uint32))
        target = out if ascending else np.empty_like(out)
        read = reader.read_list if out.dtype == np.int8 else reader.read_dosages_list
        try:
            read(columns, target)
        except (RuntimeError, OSError) as error:
            raise self._damaged(number, int(columns.min()), int(columns.max())) from error
        if not ascending:
            out[:, order] = target

    def genotype_counts(self, variant_rows: np.ndarray) -> np.ndarray:
        """Count genotypes, without spreading them: uint32, shape (n, 4), of 0, 1, 2 copies of ``alt``, and missing."""
        counts = np.empty((len(variant_rows), 4), dtype=np.uint32)
        file_of, columns = self._place(variant_rows)
        for reader, rows, raw in zip(self.readers, self.rows, self.raw_samples, strict=True):
            reader.change_sample_subset(None if len(rows) == raw else np.sort(rows).astype(np.uint32))
        number = column = 0
        try:
            for row, number, column in zip(counts, file_of.tolist(), columns.tolist(), strict=True):
                self.readers[number].count(column, row)
        except (RuntimeError, OSError) as error:
            raise self._damaged(number, column, column) from error
        return counts

    def carriers(
        self, variant_rows: np.ndarray, wanted: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Read variants sparsely where their records are stored so (rare ALT in a .pgen).

        Parameters
        ----------
        variant_rows : ndarray of int64, shape (n,)
        wanted : ndarray of bool, shape (n,)
            Leave the others alone.

        Returns
        -------
        found : ndarray of bool, shape (n,)
        entries : (which of the n, participant, call)
            Those who are not REF REF: int64, int64, int8; a negative call is missing.
        """
        found = np.zeros(len(variant_rows), dtype=bool)
        for reader in self.readers:
            reader.change_sample_subset(None)  # sparse reads know no subset
        lists, numbers = [], []
        file_of, columns = self._place(variant_rows)
        place = 0
        try:
            for place in np.flatnonzero(wanted).tolist():
                reader, column = self.readers[file_of[place]], int(columns[place])
                if reader.has_sparse(column):
                    lists.append(reader.read_sparse8(column))
                    numbers.append(place)
        except (RuntimeError, OSError) as error:
            raise self._damaged(int(file_of[place]), int(columns[place]), int(columns[place])) from error
        found[numbers] = True
        if not lists:
            return found, (np.array([], np.int64), np.array([], np.int64), np.array([], np.int8))
        which = np.repeat(numbers, [len(rows) for rows, _ in lists])
        rows, calls = (np.concatenate(parts) for parts in zip(*lists, strict=True))
        samples = self.participant_of[file_of[which], rows]
        inside = samples >= 0
        return found, (which[inside], samples[inside], calls[inside])

    def _place(self, variant_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the file of each variant and its column there."""
        file_of = np.searchsorted(self.first_variant, variant_rows, "right") - 1
        return file_of, variant_rows - self.first_variant[file_of]

    def _damaged(self, number: int, first: int, last: int) -> UserError:
        """Say between which variants (0-based) a file cannot be read."""
        where = f"variant {first + 1}" if first == last else f"variants {first + 1} to {last + 1}"
        return UserError(f"{self.files[number]}: damaged at {where}; copy the file again")


def find_files(source: Path) -> list[Path]:
    """List .pgen files of a folder in natural order, else its .bed files, or return the one file given."""
    if not source.is_dir():
        if source.suffix not in (".bed", ".pgen"):
            raise UserError(f"{source}: is neither .bed nor .pgen; convert it with plink2 --make-pgen")
        return [source]
    for suffix in (".pgen", ".bed"):
        if found := sorted(source.glob(f"*{suffix}"), key=natural_key):
            return found
    raise UserError(f"{source}: holds no .pgen or .bed file; give a PLINK file set or a folder of them")


def read_variants(path: Path) -> pd.DataFrame:
    """Return the variants of a file set: the columns of :class:`Genotypes`.

    Raises
    ------
    UserError
        The .bim or .pvar is absent or malformed; names the line.
    """
    if path.suffix == ".bed":
        table = read_bim(path.with_suffix(".bim"), chromosome_code)
        return table[["chromosome", "position", "id", "ref", "alt"]]
    return _read_pvar(path.with_suffix(".pvar"))


def _read_pvar(path: Path) -> pd.DataFrame:
    skip, names = _pvar_header(path)
    needed = ["CHROM", "POS", "ID", "REF", "ALT"]
    try:
        raw = pd.read_csv(
            path,
            sep="\t",
            skiprows=skip,
            header=None,
            names=names,
            usecols=needed,
            dtype=str,
            na_filter=False,
            quoting=3,
        )
    except ValueError as error:  # pandas' own and those of text that is none
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); mend the file") from error
    if not len(raw):
        raise UserError(f"{path}: names no variants; a .pvar has one line per variant")
    position = pd.to_numeric(raw["POS"], errors="coerce")
    # Not cast first: 1060.5 would silently become another place, and 1e25 any.
    whole = (position >= 0) & (position < 2**31) & (position % 1 == 0)
    # Short lines are filled up with empty fields.
    bad = np.flatnonzero(~whole | (raw["ALT"] == "") | (raw["REF"] == ""))
    if len(bad):
        raise UserError(
            f"{path}: line {skip + bad[0] + 1}: needs {', '.join(names)}, the position a whole number; mend the line"
        )
    codes, labels = pd.factorize(raw["CHROM"])
    return pd.DataFrame(
        {
            "chromosome": np.array([chromosome_code(label) for label in labels], dtype=np.int8)[codes],
            "position": position.to_numpy(np.int64),
            "id": raw["ID"].to_numpy(object),
            "ref": _upper(raw["REF"]),
            "alt": _upper(raw["ALT"]),
        }
    )


def _upper(alleles: pd.Series) -> np.ndarray:
    codes, distinct = pd.factorize(alleles)
    return np.array([allele.upper() for allele in distinct], dtype=object)[codes]


def _pvar_header(path: Path) -> tuple[int, list[str]]:
    """Return the number of lines before the first variant and the column names."""
    skip, names = 0, None
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if not line.startswith("#"):
                    break
                skip += 1
                if line.startswith("#CHROM"):
                    names = line[1:].split()
                    break
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist; unpack .pvar.zst with plink2 --zst-decompress") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text; copy it again from the source") from error
    if names is None:
        raise UserError(f"{path}: has no header line (#CHROM POS ID REF ALT); write the file with plink2 --make-pgen")
    if lacking := [name for name in ("CHROM", "POS", "ID", "REF", "ALT") if name not in names]:
        raise UserError(
            f"{path}: line {skip} names no column {', '.join(lacking)}; write the file with plink2 --make-pgen"
        )
    return skip, names


def _open(path: Path, ids: list[str], variants: pd.DataFrame) -> Any:
    allele_counts = variants["alt"].str.count(",").to_numpy(np.int64) + 2
    more: dict[str, Any] = {}
    if allele_counts.max(initial=2) > 2:
        more["allele_idx_offsets"] = np.r_[0, np.cumsum(allele_counts)].astype(np.uintp)
    try:
        return pgenlib.PgenReader(str(path).encode(), raw_sample_ct=len(ids), variant_ct=len(variants), **more)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{path}: does not hold {len(ids)} samples x {len(variants)} variants as its companions say; "
            "it is truncated or they belong to another file"
        ) from error
