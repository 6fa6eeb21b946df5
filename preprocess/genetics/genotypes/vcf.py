"""VCF and BCF, through htslib (cyvcf2)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from cyvcf2 import VCF

from mrmfast.errors import UserError
from preprocess.genetics.genotypes.base import MISSING, GenotypeFile, variant_table

BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")  # SAM specification, 4.1.2
HAPLOID = -2  # cyvcf2's filler where a call has fewer alleles than the widest one


class VcfFile(GenotypeFile):
    """A .vcf, .vcf.gz or .bcf with samples; hard calls are GT, dosages DS where the header declares it.

    A half-missing call (``./1``) is missing, and so is one of more than two alleles. A haploid call counts double, as
    plink2 reads it on autosomes.

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
        reader = open_vcf(path)
        self.ids = list(reader.samples)
        self.has_dosages = _declares(reader, "DS")
        self.has_calls = _declares(reader, "GT")
        if not (self.has_calls or self.has_dosages):
            raise UserError(f"{path}: declares neither GT nor DS; use a VCF with genotypes")
        rows = [
            (record.CHROM, record.ID or ".", str(record.POS), record.REF, ",".join(record.ALT) or ".")
            for record in self._records(reader)
        ]
        if not rows:
            raise UserError(f"{path}: holds no variants")
        chromosome, ids, position, ref, alt = (list(column) for column in zip(*rows, strict=True))
        self.variants = variant_table(path, chromosome, ids, position, ref, alt, first=1)
        self._cursor: tuple[Iterator[Any], int] | None = None

    def copies(self, columns: np.ndarray) -> np.ndarray:
        """See :meth:`GenotypeFile.copies`."""
        if not self.has_calls:
            raise UserError(f"{self.path}: has dosages (DS) and no GT; install plink2, which makes calls of them")
        out = np.empty((len(columns), len(self.ids)), dtype=np.int8)
        for row, record in self._wanted(columns):
            out[row] = self._calls(record)
        return out

    def dosages(self, columns: np.ndarray) -> np.ndarray:
        """See :meth:`GenotypeFile.dosages`."""
        if not self.has_dosages:
            return super().dosages(columns)
        out = np.empty((len(columns), len(self.ids)), dtype=np.float32)
        for row, record in self._wanted(columns):
            values = record.format("DS")
            if values is None:
                raise UserError(f"{self._record(record)} has no DS, which the header declares")
            out[row] = values[:, 0]
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursor": None}  # an open file stays in its process

    def _calls(self, record: Any) -> np.ndarray:
        alleles = alleles_of(record, self.path)
        first = alleles[:, 0]
        second = np.where(alleles[:, 1] == HAPLOID, first, alleles[:, 1]) if alleles.shape[1] > 1 else first
        known = (first >= 0) & (second >= 0) & (alleles[:, 2:] == HAPLOID).all(axis=1)
        return np.where(known, (first > 0).astype(np.int8) + (second > 0), MISSING)

    def _wanted(self, columns: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Yield (row, record) for the columns; reading goes on where the last call stopped, if it can."""
        order = np.argsort(columns, kind="stable")
        if not len(order):
            return
        cursor = self._cursor
        if cursor is None or cursor[1] > columns[order[0]]:
            cursor = (self._records(open_vcf(self.path)), 0)
        records, number = cursor
        self._cursor = None
        for row in order.tolist():
            while number <= columns[row]:
                record = next(records, None)
                number += 1
                if record is None:
                    raise UserError(f"{self.path}: ended while it was read; has another program changed it?")
            yield row, record
        self._cursor = (records, number)

    def _records(self, reader: VCF) -> Iterator[Any]:
        number = 0
        try:
            for record in reader:
                number += 1
                yield record
        except UserError:
            raise
        except Exception as error:  # htslib's complaints come as plain Exception
            where = place_of(number, self.path)
            raise UserError(f"{self.path}: {where} is damaged ({type(error).__name__}); mend it") from error

    def _record(self, record: Any) -> str:
        return f"{self.path}: {record.CHROM}:{record.POS}"


def place_of(done: int, path: Path) -> str:
    """Say which line follows `done` records; of a BCF, which has no lines, which record."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    # The lines of the file itself: htslib adds some to the header that it shows.
    with gzip.open(path, "rb") if packed else open(path, "rb") as text:
        header = sum(1 for _ in takewhile(lambda line: line.startswith(b"#"), text))
    return f"line {header + done + 1}" if header else f"record {done + 1}"


def alleles_of(record: Any, path: Path) -> np.ndarray:
    """Return the alleles of every sample's call: -1 missing, -2 filler of a call with fewer of them.

    Raises
    ------
    UserError
        The record has no genotypes, or one names an allele that the site lacks: htslib lets ``0/5`` pass, and it would
        count as something.
    """
    try:
        genotype = record.genotype
    except Exception:  # cyvcf2 says so as a plain Exception or as None, depending on the other fields
        genotype = None
    if genotype is None:
        raise UserError(
            f"{path}: {record.CHROM}:{record.POS} has no GT; leave such records out with bcftools view -i 'GT!=\"\"'"
        )
    alleles: np.ndarray = genotype.array()[:, :-1]  # the last column is the phase
    if alleles.max(initial=0) > len(record.ALT):
        raise UserError(
            f"{path}: {record.CHROM}:{record.POS}: a genotype names allele {int(alleles.max())}, the site has "
            f"{1 + len(record.ALT)} (0..{len(record.ALT)}); mend the record"
        )
    return alleles


def _declares(reader: VCF, name: str) -> bool:
    return any(entry["HeaderType"] == "FORMAT" and entry["ID"] == name for entry in map(_info, reader.header_iter()))


def _info(entry: Any) -> dict[str, str]:
    found = entry.info()
    return {"HeaderType": found.get("HeaderType", ""), "ID": found.get("ID", "")}


def open_vcf(path: Path) -> VCF:
    """Open a VCF with samples.

    Raises
    ------
    UserError
        Unreadable, truncated, or sites only.
    """
    with open(path, "rb") as file:
        start = file.read(16)
        if start[:4] == b"\x1f\x8b\x08\x04" and start[12:14] == b"BC":
            # htslib only warns of a bgzip file cut between two blocks, and the rest would be lost without a word.
            file.seek(max(0, path.stat().st_size - len(BGZF_END)))
            if file.read() != BGZF_END:
                raise UserError(f"{path}: is truncated (no bgzip end mark); copy the file again")
    try:
        reader = VCF(str(path))
    except Exception as error:  # cyvcf2 raises OSError or plain Exception, by kind of damage
        raise UserError(f"{path}: cannot be read as VCF ({type(error).__name__}); check the file") from error
    if not reader.samples:
        raise UserError(f"{path}: has no samples, only sites; use the VCF that holds the genotypes")
    return reader
