"""``python -m preprocess simulate``: a simulated raw data set in UK Biobank's formats; genetics affect the images.

Layout of the folder written::

    fundus/{eid}_{eye}_0.jpg          fundus images, eye left or right
    genotypes/chr{1..22}.bed/bim/fam  PLINK 1; A1 = ALT, A2 = REF
    pgs/PGS9000NN_hmPOS_GRCh38.txt.gz PGS Catalog scoring files
    burden/rare.vep.vcf.gz            VEP-annotated rare variants with genotypes
    phenotypes.tsv, traits.tsv        UK Biobank fields; the traits visible in the images
    truth.json                        the planted effects; written last, so it marks a finished folder

A rerun completes an unfinished folder. Every file is written under a temporary name and renamed, so an existing file is
complete.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from preprocess.simulate.build import simulate
from preprocess.simulate.cohort import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``simulate``."""
    parser.add_argument("--out", type=Path, required=True, help="output folder of the raw data set")
    parser.add_argument("--participants", type=int, default=64, help="number of participants (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; equal seeds give equal files (default %(default)s)"
    )
    parser.add_argument(
        "--snps",
        type=int,
        default=20_000,
        help="number of autosomal SNPs; UK Biobank's array has 784256 (default %(default)s)",
    )
    parser.add_argument("--scores", type=int, default=12, help="number of polygenic scores (default %(default)s)")
    parser.add_argument(
        "--genes", type=int, default=220, help="number of genes with rare variants (default %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="number of processes; does not change the files (default %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Write the data set.

    Raises
    ------
    UserError
        An option is out of range, or the folder has other content.
    """
    settings = Settings(args.participants, args.seed, args.snps, args.scores, args.genes)
    simulate(args.out, settings, args.workers)
