"""``python -m preprocess simulate``: a raw data set in UK Biobank's shapes whose genetics leave visible marks.

Layout of the folder written::

    fundus/{eid}_{eye}_0.jpg          photographs, eye left or right
    genotypes/chr{1..22}.bed/bim/fam  PLINK 1; A1 = ALT, A2 = REF
    pgs/PGS9000NN_hmPOS_GRCh38.txt.gz PGS Catalog scoring files
    burden/rare.vep.vcf.gz            VEP-annotated rare variants with genotypes
    phenotypes.tsv, traits.tsv        UK Biobank fields; the traits drawn into the photographs
    truth.json                        what was planted; written last, so it marks a finished folder

A folder half written is continued: every file is written aside and renamed, so a file that exists is whole.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from preprocess.simulate.build import simulate
from preprocess.simulate.cohort import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write the raw data set to")
    parser.add_argument("--participants", type=int, default=64, help="how many people (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal files (default %(default)s)")
    parser.add_argument("--snps", type=int, default=20_000, help="SNPs over autosomes; UK Biobank's array has 784256")
    parser.add_argument("--scores", type=int, default=12, help="polygenic scores (default %(default)s)")
    parser.add_argument("--genes", type=int, default=220, help="genes with rare variants (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes; does not change the files")


def run(args: argparse.Namespace) -> None:
    """Write the data set.

    Raises
    ------
    UserError
        If an option is out of range, or the folder holds something else.
    """
    settings = Settings(args.participants, args.seed, args.snps, args.scores, args.genes)
    simulate(args.out, settings, args.workers)
