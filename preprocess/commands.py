"""The preprocessing commands, for ``mrmfast preprocess`` and ``python -m preprocess``: names, summaries, examples."""

from __future__ import annotations

import os

from mrmfast.command import Entry

COMMANDS = {
    "simulate": Entry(
        "preprocess.simulate",
        "write a simulated biobank (photographs, genotypes, scores, phenotypes)",
        ("{program} simulate --out RAW --participants 64",),
    ),
    "fundus": Entry(
        "preprocess.images.fundus.command",
        "fundus photographs -> image shards",
        (
            "{program} fundus PHOTOGRAPHS --out DATASET",
            "{program} fundus PHOTOGRAPHS --out DATASET --participant-table participants.csv",
        ),
    ),
    "pathology": Entry(
        "preprocess.images.pathology.command",
        "slide tiles or whole slides -> image shards",
        ("{program} pathology SLIDES --out DATASET --magnification 20 --tiles-per-slide 64",),
    ),
    "index": Entry(
        "preprocess.images.index",
        "WebDataset tars of another tool -> a dataset, without rewriting them",
        ("{program} index DATASET",),
    ),
    "snps": Entry(
        "preprocess.genetics.snps.command",
        "genotypes (bed, PGEN, BGEN, VCF) -> packed SNPs",
        (
            "{program} snps GENOTYPES --reference a2 --out DATASET",
            "{program} snps ukb.bgen --fasta GRCh38.fa --variants hm3.txt --out DATASET",
        ),
    ),
    "pgs": Entry(
        "preprocess.genetics.pgs.command",
        "PGS Catalog scoring files + genotypes -> polygenic scores",
        ("{program} pgs SCORING_FILES --genotypes GENOTYPES --out DATASET",),
    ),
    "burden": Entry(
        "preprocess.genetics.burden.command",
        "VEP-annotated VCF -> one bit per gene",
        ("{program} burden ANNOTATED.vcf.gz --out DATASET --max-maf 0.01",),
    ),
    "expression": Entry(
        "preprocess.genetics.expression.command",
        "TCGA expression, copy number, mutations -> genetics",
        ("{program} expression TCGA_TABLE.csv --out DATASET",),
    ),
    "report": Entry(
        "preprocess.report.page",
        "one HTML page about the genetics of a dataset",
        ("{program} report DATASET",),
    ),
    "check": Entry(
        "preprocess.check",
        "compare every byte of a dataset with its checksums",
        ("{program} check DATASET",),
    ),
}


def limit_threads(command: str) -> None:
    """Keep NumPy's BLAS to one thread, before NumPy is imported: it starts one per core, and only pgs uses them."""
    if command != "pgs":
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
