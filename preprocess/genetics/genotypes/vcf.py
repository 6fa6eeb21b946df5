"""VCF and BCF, through htslib (cyvcf2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mrmfast.errors import UserError
from preprocess.genetics.genotypes.base import MISSING, GenotypeFile, hard_calls_of, on_dosage_grid
from preprocess.genetics.genotypes.tables import variant_table
from preprocess.genetics.genotypes.vcf_records import open_vcf, read_records

FIELDS = {"GT", "DS", "GP"}
HAPLOID = -2  # cyvcf2's padding for a call with fewer alleles than the widest call


class VcfFile(GenotypeFile):
    """A .vcf, .vcf.gz or .bcf with samples.

    Hard calls are GT. If no record has GT, hard calls are derived from dosages, as in plink2. Dosages are DS, or the
    expectation of GP if no record has DS. If a sample has neither, its dosage is GT.

    A half-missing call (``./1``) is missing, and so is a call of more than two alleles. A haploid call counts double,
    as in plink2 on autosomes.

    Parameters
    ----------
    path : Path

    Raises
    ------
    UserError
        The file is malformed or truncated, or has no samples.
    """

    sequential = True
    bytes_per_genotype = 12

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = open_vcf(path, check=True)
        self.ids = list(reader.samples)
        fields: set[str] = set()
        rows = []
        for record in read_records(reader, path):
            # The header may lack a declaration, or declare fields that no record has.
            if not fields >= FIELDS:
                fields.update(record.FORMAT or ())
            alt = ",".join(record.ALT) or "."
            rows.append((record.CHROM, record.ID or ".", str(record.POS), record.REF, alt, record.FILTER or "."))
        if not rows:
            raise UserError(f"{path}: holds no variants")
        if not fields & FIELDS:
            raise UserError(f"{path}: has none of GT, DS and GP; use a VCF with genotypes")
        self.has_calls = "GT" in fields
        self.dosage_field = next((name for name in ("DS", "GP") if name in fields), None)
        self.has_dosages = self.dosage_field is not None
        *columns, filters = (list(column) for column in zip(*rows, strict=True))
        self.variants = variant_table(path, tuple(columns), range(1, len(rows) + 1), filters)
        self._cursor: tuple[Iterator[Any], int] | None = None

    def hard_calls(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.hard_calls`."""
        if not self.has_calls:
            return hard_calls_of(self.dosages(columns, samples))
        chosen, width = (slice(None), len(self.ids)) if samples is None else (samples, len(samples))
        out = np.empty((len(columns), width), dtype=np.int8)
        for row, record in self._records_of(columns):
            out[row] = self._calls(record)[chosen]
        return out

    def dosages(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.dosages`; rounded to the grid of a .pgen."""
        if self.dosage_field is None:
            return super().dosages(columns, samples)
        chosen, width = (slice(None), len(self.ids)) if samples is None else (samples, len(samples))
        out = np.empty((len(columns), width), dtype=np.float32)
        for row, record in self._records_of(columns):
            out[row] = on_dosage_grid(self._dosages(record, self.dosage_field)[chosen])
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursor": None}  # an open file cannot be pickled

    def _calls(self, record: Any) -> np.ndarray:
        alleles = alleles_of(record, self.path)
        first = alleles[:, 0]
        second = np.where(alleles[:, 1] == HAPLOID, first, alleles[:, 1]) if alleles.shape[1] > 1 else first
        known = (first >= 0) & (second >= 0) & (alleles[:, 2:] == HAPLOID).all(axis=1)
        return np.where(known, (first > 0).astype(np.int8) + (second > 0), MISSING)

    def _dosages(self, record: Any, field: str) -> np.ndarray:
        """Return the expected copies of ALT of one record, float; NaN is missing."""
        values = record.format(field)
        if values is None:
            expected = np.full(len(self.ids), np.nan)
        elif field == "DS":
            expected = self._numbers(values, record)[:, 0]
        else:
            expected = _expected_copies(self._numbers(values, record))
        unknown = np.isnan(expected)
        if self.has_calls and unknown.any():
            calls = self._calls(record)
            expected = np.where(unknown & (calls >= 0), calls, expected)
        return expected

    def _numbers(self, values: np.ndarray, record: Any) -> np.ndarray:
        """Return numbers of shape (samples, n); htslib returns text if the header does not declare the field."""
        try:
            if values.dtype.kind not in "US":
                return values.reshape(len(values), -1).astype(np.float64)
            cells = [[np.nan if part in (".", "") else float(part) for part in cell.split(",")] for cell in values]
            width = max(map(len, cells))
            return np.array([cell + [np.nan] * (width - len(cell)) for cell in cells])
        except ValueError as error:
            raise UserError(
                f"{self.path}: {record.CHROM}:{record.POS}: {self.dosage_field} is not a number; correct the record"
            ) from error

    def _records_of(self, columns: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Yield (row, record) for the columns; reading continues at the record of the last call if possible."""
        order = np.argsort(columns, kind="stable")
        if not len(order):
            return
        cursor = self._cursor
        if cursor is None or cursor[1] > columns[order[0]]:
            cursor = (read_records(open_vcf(self.path), self.path), 0)
        records, number = cursor
        self._cursor = None
        for row in order.tolist():
            while number <= columns[row]:
                record = next(records, None)
                number += 1
                if record is None:
                    raise UserError(
                        f"{self.path}: became shorter while it was read; check whether another program changes it"
                    )
            yield row, record
        self._cursor = (records, number)


def alleles_of(record: Any, path: Path) -> np.ndarray:
    """Return the alleles of every sample's call: -1 is missing, -2 pads a call with fewer alleles.

    Raises
    ------
    UserError
        The record has no genotypes, or a genotype has an allele number beyond the alleles of the site, such as ``0/5``,
        which htslib does not reject.
    """
    try:
        genotype = record.genotype
    except Exception:  # without GT, cyvcf2 raises plain Exception or returns None, depending on the other fields
        genotype = None
    if genotype is None:
        raise UserError(
            f"{path}: {record.CHROM}:{record.POS} has no GT; exclude such records with bcftools view -i 'GT!=\"\"'"
        )
    alleles: np.ndarray = genotype.array()[:, :-1]  # the last column is the phase
    if alleles.max(initial=0) > len(record.ALT):
        raise UserError(
            f"{path}: {record.CHROM}:{record.POS}: a genotype names allele {int(alleles.max())}, the site has "
            f"{1 + len(record.ALT)} (0..{len(record.ALT)}); correct the record"
        )
    return alleles


def _expected_copies(probabilities: np.ndarray) -> np.ndarray:
    """Return the expected copies of ALT from GP: (0, 1, 2 copies), or (0, 1) of a haploid call, which counts double.

    Parameters
    ----------
    probabilities : ndarray of float64, shape (samples, 2 or 3)
        NaN is missing; NaN also pads a haploid call.
    """
    haploid = 2 * probabilities[:, 1]
    if probabilities.shape[1] < 3:
        return haploid
    return np.where(np.isnan(probabilities[:, 2]), haploid, probabilities[:, 1] + 2 * probabilities[:, 2])
