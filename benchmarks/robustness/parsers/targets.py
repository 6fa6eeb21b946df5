"""What reads each input: everything of a file set through the readers of ``preprocess``."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.robustness.parsers import seeds
from preprocess.genetics import cohort
from preprocess.genetics.burden import annotations as annotation_files
from preprocess.genetics.burden import vcf, vep
from preprocess.genetics.burden.gene_bits import Tally
from preprocess.genetics.genotypes import Genotypes, open_genotypes
from preprocess.genetics.pgs import scoring_file
from preprocess.genetics.pgs.match import VariantIndex
from preprocess.genetics.snps.variant_list import read_list

MEMORY = 1 << 20


def genotypes(folder: Path) -> None:
    """Read all calls, dosages, packed codes, counts and carriers."""
    source = open_genotypes(folder, dosages=True)
    rows = np.arange(len(source.variants))
    two_alleles = rows[(source.variants["alleles"] == 2).to_numpy()]
    source.hard_calls(two_alleles)
    source.dosages(two_alleles)
    source.packed(two_alleles, 0, len(source.samples))
    source.genotype_counts(two_alleles)
    source.carriers(two_alleles, np.zeros(len(two_alleles), dtype=bool), MEMORY)
    VariantIndex(source.variants)


def burden(folder: Path) -> None:
    """Scan a VCF that VEP annotated, and read it as sites."""
    path = next(file for file in folder.iterdir() if ".vcf" in file.name)
    names, rule = seeds.ids(), vep.HarmRule()
    vcf.scan(path, names, set(names), rule, 0.5, Tally(len(names)), io.StringIO(), vep.CsqCounts(), False)
    annotation_files.read_vep(path, rule, valid(folder).variants)


def scoring(folder: Path) -> None:
    """Read a scoring file and match it."""
    path = folder / "s.txt"
    VariantIndex(valid(folder).variants).match(scoring_file.read_score(path, "GRCh38"))


def tables(folder: Path) -> None:
    """Read the lists and annotation tables."""
    variants = valid(folder).variants
    annotated, sets, masks = (folder / name for name in ("annotations.txt", "sets.txt", "masks.txt"))
    readers: list[Callable[[], object]] = [
        lambda: cohort.read_keep(folder / "keep.txt"),
        lambda: read_list(folder / "variants.txt", variants),
        lambda: annotation_files.read_tables(annotated, sets, masks, "M1", variants, False),
    ]
    for read in readers:
        read()


def valid(folder: Path) -> Genotypes:
    """Return genotypes that no mutation touches, beside the mutated file."""
    source = folder / "valid"
    if not source.exists():
        source.mkdir()
        for name, content in seeds.bed().items():
            (source / name).write_bytes(content)
    return open_genotypes(source)


class Target(NamedTuple):
    """A parser: a valid input, and what reads it."""

    files: Callable[[], seeds.Files]
    read: Callable[[Path], None]


TARGETS = {
    "bed": Target(seeds.bed, genotypes),
    "pgen": Target(seeds.pgen, genotypes),
    "bgen": Target(seeds.bgen, genotypes),
    "bgen_plain": Target(lambda: seeds.bgen(0), genotypes),
    "vcf": Target(seeds.vcf, genotypes),
    "vcf_gz": Target(seeds.vcf_gz, genotypes),
    "vcf_bgzf": Target(seeds.vcf_bgzf, genotypes),
    "vcf_vep": Target(seeds.vcf, burden),
    "scoring": Target(seeds.scoring, scoring),
    "tables": Target(seeds.tables, tables),
}
