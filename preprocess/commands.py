"""The preprocessing commands, for ``mrmfast preprocess`` and ``python -m preprocess``: names, summaries, examples."""

from __future__ import annotations

import os

from mrmfast.command import Entry

COMMANDS = {
    "simulate": Entry(
        "preprocess.simulate",
        "write a simulated biobank (fundus images, genotypes, scores, phenotypes)",
        ("{program} simulate --out RAW --participants 64",),
    ),
    "fundus": Entry(
        "preprocess.images.fundus.command",
        "fundus images -> image shards",
        (
            "{program} fundus IMAGES --out DATASET",
            "{program} fundus IMAGES --out DATASET --participant-table participants.csv",
        ),
    ),
    "pathology": Entry(
        "preprocess.images.pathology.command",
        "slide tiles or whole slides -> image shards",
        ("{program} pathology SLIDES --out DATASET --magnification 20 --tiles-per-slide 64",),
    ),
    "images": Entry(
        "preprocess.images.general.command",
        "any 2-D images (X-ray, OCT, dermoscopy, ...) -> image shards",
        ("{program} images FOLDER --out DATASET --crop none",),
    ),
    "index": Entry(
        "preprocess.images.index",
        "WebDataset tars of another tool -> a dataset, without rewriting them",
        ("{program} index DATASET",),
    ),
    "snps": Entry(
        "preprocess.genetics.snps.command",
        "genotypes (.bed, .pgen, .bgen, VCF) -> packed SNPs",
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
        "rare harmful variants (VEP-annotated VCF, or genotypes + annotations) -> one bit per gene",
        ("{program} burden ANNOTATED.vcf.gz --out DATASET --max-maf 0.01",),
    ),
    "expression": Entry(
        "preprocess.genetics.expression.command",
        "TCGA table -> RNA expression, copy number and mutations",
        ("{program} expression TCGA_TABLE.csv --out DATASET",),
    ),
    "report": Entry(
        "preprocess.report.page",
        "write an HTML page about the genetics of a dataset",
        ("{program} report DATASET",),
    ),
    "check": Entry(
        "preprocess.check",
        "compare all files of a dataset with their checksums",
        ("{program} check DATASET",),
    ),
}


def limit_threads(command: str) -> None:
    """Limit NumPy's BLAS to one thread, before the import of NumPy: only pgs uses more threads."""
    if command != "pgs":
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def protect_files() -> None:
    """Let nobody but the user and the group read what a command writes: tars and tables hold participants' ids."""
    os.umask(os.umask(0o077) | 0o007)
