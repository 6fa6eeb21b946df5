"""Burden from VEP-annotated VCFs that hold the genotypes too, and VEP annotations from VCFs of sites."""

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
from preprocess.genetics.genotypes.vcf import alleles_of, place_of

BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")  # SAM specification, 4.1.2
VCF_ENDINGS = (".vcf", ".vcf.gz", ".bcf")
LEDGER_COLUMNS = ("chromosome", "position", "reference", "alternative", "alt_frequency", "fate", "gene", "why")


def find_vcfs(source: Path) -> list[Path]:
    """List the VCF files of a folder in natural order, or return the one file given."""
    if not source.is_dir():
        return [source]
    paths = sorted((p for p in source.iterdir() if p.name.endswith(VCF_ENDINGS)), key=natural_key)
    if not paths:
        raise UserError(
            f"{source}: holds no .vcf, .vcf.gz or .bcf file (the output of Ensembl VEP) and no .pgen or .bed file"
        )
    return paths


def open_vcf(path: Path, sites: bool = False) -> VCF:
    """Open a VCF.

    Parameters
    ----------
    path : Path
    sites : bool
        Skip genotypes; else there must be samples.

    Raises
    ------
    UserError
        Unreadable, or without samples.
    """
    with open(path, "rb") as file:
        start = file.read(16)
        if start[:4] == b"\x1f\x8b\x08\x04" and start[12:14] == b"BC":
            # htslib only warns of a bgzip file cut between two blocks, and the rest would be lost without a word.
            file.seek(max(0, path.stat().st_size - len(BGZF_END)))
            if file.read() != BGZF_END:
                raise UserError(f"{path}: is truncated (no bgzip end mark); copy the file again")
    try:
        vcf = VCF(str(path), samples=[]) if sites else VCF(str(path))
    except Exception as error:  # cyvcf2 raises OSError or plain Exception, by kind of damage
        raise UserError(f"{path}: cannot be read as VCF ({type(error).__name__}); check the file") from error
    if not sites and not vcf.samples:
        raise UserError(
            f"{path}: has no samples, only sites; give genotypes (.pgen, .bed) as SRC and this file as --annotations"
        )
    return vcf


def records(vcf: VCF, path: Path) -> Iterator[Any]:
    """Iterate over records with progress; damage is an error that says after how many."""
    done = 0
    stream = iter(vcf)
    with tqdm(desc=f"burden: {path.name}", unit="variant", disable=None) as bar:
        while True:
            try:
                variant = next(stream)
            except StopIteration:
                return
            except Exception as error:  # htslib's parse errors arrive as plain Exception
                raise UserError(
                    f"{path}: damaged after {done} variants ({place_of(done, path)}); copy the file again"
                ) from error
            yield variant
            done += 1
            bar.update()


def scan(
    path: Path,
    participants: list[str],
    everyone: set[str],
    rule: vep.HarmRule,
    max_maf: float,
    tally: Tally,
    ledger: IO[str],
) -> None:
    """Stream one VCF and add its harmful rare variants to `tally`.

    Parameters
    ----------
    path : Path
    participants : list of str
        Who is counted, for frequencies and carriers alike.
    everyone : set of str
        Who is in the first file and has not withdrawn; every file must hold the same people, in any order.
    rule : HarmRule
    max_maf : float
    tally : Tally
        Changed in place.
    ledger : text file
        One line per allele, and per gene where it counted.
    """
    vcf = open_vcf(path)
    parser = vep.CsqParser(vep.csq_fields(vcf.raw_header, path), rule)
    order = cohort.locate(participants, list(vcf.samples), everyone, path)
    for variant in records(vcf, path):
        _add(variant, path, parser, order, max_maf, tally, ledger)
    tally.fates["annotations_malformed"] += parser.malformed
    tally.fates["annotations_allele_unknown"] += parser.allele_unknown


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
            _note(tally, ledger, variant, alternative, "not_annotated" if number else "not_autosomal")
        return
    harmed, genes = parser.parse(csq, variant.REF, alternatives)
    for gene, symbol in genes.items():
        tally.genes.setdefault((number, gene), Gene(number, variant.POS, symbol))
    # Genotypes are decoded only where something is harmful: most of the time goes there.
    calls = alleles_of(variant, path)[order] if any(harmed) else None
    for index, (alternative, why) in enumerate(zip(alternatives, harmed, strict=True), start=1):
        if not why or calls is None:
            _note(tally, ledger, variant, alternative, "not_harmful")
            continue
        called = int((calls >= 0).sum())  # negative: missing, or absent (haploid)
        carried = calls == index
        frequency = int(carried.sum()) / called if called else 0.0
        verdict = str(fates(np.array(frequency), max_maf))
        if verdict != "counted":
            _note(tally, ledger, variant, alternative, verdict, frequency)
            continue
        tally.fates[verdict] += 1
        carriers = np.flatnonzero(carried.any(axis=1))
        homozygous = carried[carriers].sum(axis=1) > 1
        for gene, reason in sorted(why.items()):
            tally.count((number, gene), carriers, homozygous)
            tally.fates[f"counted_{reason}"] += 1
            _write(ledger, variant, alternative, verdict, frequency, gene, reason)


def _note(
    tally: Tally, ledger: IO[str], variant: Any, alternative: str, verdict: str, frequency: float | None = None
) -> None:
    tally.fates[verdict] += 1
    _write(ledger, variant, alternative, verdict, frequency, "", "")


def _write(
    ledger: IO[str], variant: Any, alternative: str, verdict: str, frequency: float | None, gene: str, why: str
) -> None:
    shown = "" if frequency is None else f"{frequency:.6g}"
    ledger.write(f"{variant.CHROM}\t{variant.POS}\t{variant.REF}\t{alternative}\t{shown}\t{verdict}\t{gene}\t{why}\n")
