"""``python -m preprocess burden``: harmful rare variants -> one bit per participant and gene.

Rule of the original study: the bit of a protein-coding gene is 1 if the participant carries at least one probably
harmful rare variant in it. Harmful: VEP IMPACT HIGH on a protein-coding transcript (nonsense-mediated decay transcripts
excluded), or a missense change that PolyPhen or SIFT calls harmful (:class:`vep.HarmRule`); or what a table says
(``--annotations`` with ``--mask``, regenie's formats). Rare: minor allele frequency below ``--max-maf`` among the
participants kept; where the *reference* is the rare allele the variant is left out, or nearly everyone would carry it.
A missing genotype counts as 0; in a half-missing one of a VCF the allele that is known counts.

SRC is a VEP-annotated VCF with genotypes, or PLINK genotypes with ``--annotations``. ``--code copies`` stores the
largest number of copies of any counted variant (0, 1, 2: regenie's ``max`` mask) instead of the bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from mrmfast.errors import UserError
from mrmfast.formats.genetics import FeatureTable, write_modality
from preprocess.genetics import cohort, command
from preprocess.genetics.burden import annotations as annotation_files
from preprocess.genetics.burden import plink, vcf, vep
from preprocess.genetics.burden.gene_bits import Tally
from preprocess.genetics.burden.vcf import VCF_ENDINGS
from preprocess.genetics.genotypes.dosages import PlinkFiles

BLOCK_BYTES = 256 << 20
PLINK_LEDGER = ("variant", "alt_frequency", "fate", "gene", "why")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``burden``."""
    command.add_common_arguments(
        parser,
        "a VEP-annotated VCF (.vcf, .vcf.gz, .bcf) with genotypes, or a .pgen or .bed file (with --annotations), or a "
        "folder of either",
    )
    parser.add_argument("--max-maf", type=float, default=0.01, help="minor allele frequency below this (default 0.01)")
    parser.add_argument("--min-polyphen", type=float, default=0.8, help="PolyPhen at least this (default 0.8)")
    parser.add_argument("--max-sift", type=float, default=0.2, help="SIFT at most this; 0 is harmful (default 0.2)")
    parser.add_argument(
        "--missense-rule",
        choices=("either", "mean", "none"),
        default="either",
        help="either prediction suffices (default), the mean of PolyPhen and 1 - SIFT reaches --min-polyphen, or no "
        "missense change counts",
    )
    parser.add_argument(
        "--biotype", default="protein_coding", help="transcripts of this biotype count (default protein_coding)"
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        type=Path,
        help="for PLINK genotypes: a VCF of sites from VEP, or a table of variant, gene, category (regenie's)",
    )
    parser.add_argument("--sets", metavar="FILE", type=Path, help="set list: gene, chromosome, position, variants")
    parser.add_argument("--masks", metavar="FILE", type=Path, help="masks: name, categories")
    parser.add_argument("--mask", metavar="NAME", help="which of --masks, or categories joined by commas")
    parser.add_argument(
        "--reference",
        choices=("a1", "a2"),
        help="for .bed with a table: the .bim column with the reference genome's allele, a1 (5th) or a2 (6th)",
    )
    parser.add_argument(
        "--code",
        choices=("carrier", "copies"),
        default="carrier",
        help="one bit (default), or the largest number of copies of any counted variant",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; see the module's docstring for the rules.

    Raises
    ------
    UserError
        Options or files that the user can mend, or no variant qualifies.
    """
    if not 0 < arguments.max_maf <= 0.5:
        raise UserError(f"--max-maf {arguments.max_maf}: give a frequency above 0, up to 0.5")
    with command.writing(arguments, "burden", ["burden"]):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    split, pseudonyms = command.check_target(arguments, ["burden"])
    rule = vep.HarmRule(arguments.min_polyphen, arguments.max_sift, arguments.missense_rule, arguments.biotype)
    scan = _scan_vcfs if _has_vcfs(arguments.src) else _scan_plink
    ids, people, files, tally = scan(arguments, rule)
    hit = tally.hit()
    if not hit:
        raise UserError(
            f"{arguments.src}: no harmful variant with a frequency below {arguments.max_maf} is carried; "
            "check the annotation (IMPACT, SIFT, PolyPhen, or --mask) or raise --max-maf"
        )
    genes = [tally.genes[key] for key in hit]
    features = FeatureTable.build(
        [name for _, name in hit],
        [f"chr{gene.chromosome}" for gene in genes],
        chromosome=[str(gene.chromosome) for gene in genes],
        position=[gene.position for gene in genes],
    )
    command.claim(arguments.out, split, pseudonyms)
    settings = {
        "max_maf": arguments.max_maf,
        "min_polyphen": rule.polyphen,
        "max_sift": rule.sift,
        "missense_rule": rule.combine,
        "biotype": rule.biotype,
        "mask": arguments.mask or "",
        "code": arguments.code,
        "missing_genotype": 0,
    }
    report: dict[str, Any] = {
        "settings": {**settings, "split_seed": split.seed, "test_fraction": split.test_fraction},
        "files": files,
        "participants": people,
        "alleles": dict(sorted(tally.fates.items())),
        "genes": {
            "protein_coding_annotated": len(tally.genes),
            "kept": len(genes),
            "without_counted_variant": len(tally.genes) - len(genes),
            "variants_per_kept_gene": sum(gene.variants for gene in genes) / len(genes),
        },
        "features_per_group": dict(features.groups()),
        "symbols": {name: tally.genes[number, name].symbol for number, name in hit},
    }
    # The store comes last: where it stands, everything stands, and what a crash leaves the next run sweeps away.
    command.write_report(arguments.out, "burden", report)
    write_modality(
        arguments.out,
        "burden",
        "genotype" if arguments.code == "copies" else "binary",
        pseudonyms.of(ids),
        features,
        (block.view(np.int8) for block in tally.blocks(hit)),
        attributes=settings,
    )
    fates = tally.fates
    print(f"burden: {len(ids)} participants x {len(genes)} genes on {len(features.groups())} chromosomes")
    print(f"  participants: {people['withdrawn']} withdrawn samples left out")
    print(
        f"  counted: {fates['counted']}; left out: {fates['not_harmful'] + fates['not_in_mask']} not harmful, "
        f"{fates['too_common']} too common, {fates['alt_is_major']} with a rare reference, "
        f"{fates['not_carried']} not carried, {fates['not_autosomal']} not autosomal, {fates['absent']} absent"
    )
    print(f"  genes without a counted variant, left out: {len(tally.genes) - len(genes)}")
    print(f"  report: {arguments.out / 'reports' / 'burden.json'}")
    return 0


Scanned = tuple[list[str], dict[str, int], list[str], Tally]


def _has_vcfs(source: Path) -> bool:
    """Whether SRC is VCF; a folder with PLINK genotypes in it is not."""
    if source.is_dir():
        return not any(source.glob("*.pgen")) and not any(source.glob("*.bed"))
    return source.suffix not in (".pgen", ".bed")


def _scan_vcfs(arguments: argparse.Namespace, rule: vep.HarmRule) -> Scanned:
    for name in ("annotations", "sets", "masks", "mask", "reference"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name}: belongs to PLINK genotypes; convert SRC with plink2 --make-pgen, or drop it")
    paths = vcf.find_vcfs(arguments.src)
    samples = list(vcf.open_vcf(paths[0]).samples)
    chosen, people = cohort.select(samples, arguments.keep, paths[0])
    ids, everyone = [samples[row] for row in chosen], cohort.everyone(samples)
    tally = Tally(len(ids), arguments.code == "copies")
    with command.ledger(arguments.out, "burden_variants", vcf.LEDGER_COLUMNS) as file:
        for path in paths:
            vcf.scan(path, ids, everyone, rule, arguments.max_maf, tally, file)
    return ids, people, [path.name for path in paths], tally


def _scan_plink(arguments: argparse.Namespace, rule: vep.HarmRule) -> Scanned:
    if arguments.annotations is None:
        raise UserError(
            f"--annotations: say what is harmful in {arguments.src}: a VCF of its sites from Ensembl VEP, or a table "
            "of variant, gene, category"
        )
    genotypes = PlinkFiles(arguments.src, arguments.keep)
    if arguments.annotations.is_dir() or arguments.annotations.name.endswith(VCF_ENDINGS):
        for name in ("sets", "masks", "mask", "reference"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name}: belongs to a table of annotations; VEP's sites name genes and alleles")
        known = annotation_files.read_vep(arguments.annotations, rule, genotypes.variants)
    else:
        is_bed = genotypes.files[0].suffix == ".bed"
        if is_bed != (arguments.reference is not None):
            raise UserError(
                "--reference: say which .bim column holds the reference genome's allele (a2, or a1): a table of "
                "annotations does not name the harmful one"
                if is_bed
                else "--reference: a .pgen names its own REF; leave the option out"
            )
        known = annotation_files.read_tables(
            *(arguments.annotations, arguments.sets, arguments.masks, arguments.mask),
            *(genotypes.variants, arguments.reference == "a1"),
        )
    tally = Tally(len(genotypes.samples), arguments.code == "copies")
    with command.ledger(arguments.out, "burden_variants", PLINK_LEDGER) as file:
        plink.scan(genotypes, known, arguments.max_maf, tally, file, BLOCK_BYTES)
    files = [path.name for path in genotypes.files]
    return genotypes.samples.tolist(), genotypes.counts, files, tally
