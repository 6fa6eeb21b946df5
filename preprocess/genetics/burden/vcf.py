"""Burden from VCFs with genotypes and VEP annotations: one pass over the records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from cyvcf2 import VCF
from tqdm import tqdm

from mrmfast.errors import UserError
from preprocess.genetics import cohort
from preprocess.genetics.burden import vep
from preprocess.genetics.burden.gene_bits import Gene, Tally, fates
from preprocess.genetics.genotypes import autosome, natural_key
from preprocess.genetics.genotypes.files import format_of
from preprocess.genetics.genotypes.tables import passes_filter
from preprocess.genetics.genotypes.vcf import alleles_of
from preprocess.genetics.genotypes.vcf_records import header_lines, open_vcf, read_records
from preprocess.genetics.text import plain_cell

LEDGER_COLUMNS = ("chromosome", "position", "reference", "alternative", "alt_frequency", "fate", "gene", "why")


def find_vcfs(source: Path) -> list[Path]:
    """List the VCF files of a folder in natural order, or return a single file as a list."""
    if not source.is_dir():
        return [source]
    paths = [p for p in source.iterdir() if format_of(p) == ".vcf" and not p.name.startswith(".") and p.is_file()]
    if not paths:
        raise UserError(f"{source}: holds no .vcf, .vcf.gz or .bcf file (the output of Ensembl VEP)")
    return sorted(paths, key=natural_key)


def records(vcf: VCF, path: Path) -> Iterator[Any]:
    """Iterate over the records of an open VCF with a progress bar."""
    with tqdm(desc=f"burden: {path.name}", unit="variant", disable=None) as bar:
        for record in read_records(vcf, path):
            yield record
            bar.update()


def scan(
    path: Path,
    participants: list[str],
    everyone: set[str],
    rule: vep.HarmRule,
    max_maf: float,
    tally: Tally,
    ledger: IO[str],
    counts: vep.CsqCounts,
    all_filters: bool,
) -> None:
    """Stream one VCF and add its harmful rare variants to `tally`.

    Parameters
    ----------
    path : Path
    participants : list of str
        Participants that count, for frequencies and for carriers.
    everyone : set of str
        Participants of the first file without the withdrawn ones; every file must hold the same set, in any order.
    rule : HarmRule
    max_maf : float
    tally : Tally
        Changed in place.
    ledger : text file
        One line per allele; for counted alleles one line per allele and gene.
    counts : CsqCounts
        Changed in place.
    all_filters : bool
        Use records that fail a filter too.
    """
    vcf = open_vcf(path, check=True)
    parser = vep.CsqParser(vep.csq_fields(header_lines(path), path, rule), rule, counts)
    order = cohort.locate(participants, list(vcf.samples), everyone, path)
    for variant in records(vcf, path):
        if all_filters or passes_filter(variant.FILTER or "."):
            _add(variant, path, parser, order, max_maf, tally, ledger)
            continue
        for alternative in variant.ALT or ["."]:
            _exclude(tally, ledger, variant, alternative, "filtered")


def _add(
    variant: Any,
    path: Path,
    parser: vep.CsqParser,
    order: np.ndarray,
    max_maf: float,
    tally: Tally,
    ledger: IO[str],
) -> None:
    number = autosome(variant.CHROM)
    alternatives = list(variant.ALT)
    csq = variant.INFO.get("CSQ") if number else None
    if not number or not csq:
        for alternative in alternatives or ["."]:
            _exclude(tally, ledger, variant, alternative, "not_annotated" if number else "not_autosomal")
        return
    harmed, genes = parser.parse(csq, variant.REF, alternatives)
    for gene, symbol in genes.items():
        tally.genes.setdefault((number, gene), Gene(number, variant.POS, symbol))
    # Decoding genotypes takes most of the time: only records with a harmful allele are decoded.
    calls = alleles_of(variant, path)[order] if any(harmed) else None
    for index, (alternative, why) in enumerate(zip(alternatives, harmed, strict=True), start=1):
        if not why or calls is None:
            _exclude(tally, ledger, variant, alternative, "not_harmful")
            continue
        called = int((calls >= 0).sum())  # negative: missing, or absent (haploid)
        carried = calls == index
        frequency = int(carried.sum()) / called if called else 0.0
        fate = str(fates(np.array(frequency), max_maf))
        if fate != "counted":
            _exclude(tally, ledger, variant, alternative, fate, frequency)
            continue
        tally.fates[fate] += 1
        carriers = np.flatnonzero(carried.any(axis=1))
        homozygous = carried[carriers].sum(axis=1) > 1
        for gene, reason in sorted(why.items()):
            tally.count((number, gene), carriers, homozygous)
            tally.fates[f"counted_{reason}"] += 1
            _write(ledger, variant, alternative, fate, frequency, gene, reason)


def _exclude(
    tally: Tally, ledger: IO[str], variant: Any, alternative: str, fate: str, frequency: float | None = None
) -> None:
    tally.fates[fate] += 1
    _write(ledger, variant, alternative, fate, frequency, "", "")


def _write(
    ledger: IO[str], variant: Any, alternative: str, fate: str, frequency: float | None, gene: str, why: str
) -> None:
    shown = "" if frequency is None else f"{frequency:.6g}"
    texts = [variant.CHROM, str(variant.POS), variant.REF, alternative, shown, fate, gene, why]
    ledger.write("\t".join(map(plain_cell, texts)) + "\n")
