"""``python -m preprocess burden``: harmful rare variants -> one bit per participant and gene.

Rule of the original study: the bit of a protein-coding gene is 1 if the participant carries at least one probably
harmful rare variant in the gene.

- Harmful: VEP IMPACT HIGH on a protein-coding transcript (nonsense-mediated decay transcripts excluded), or a missense
  variant that PolyPhen or SIFT predicts to be harmful (:class:`vep.HarmRule`). Alternatively a table names the harmful
  variants (``--annotations`` with ``--mask``, regenie's formats).
- Rare: minor allele frequency below ``--max-maf`` among the included participants. If the *reference* allele is rare,
  the variant is excluded: nearly everyone would be a carrier.
- A missing genotype counts as 0. In a half-missing call of a VCF the known allele counts.

SRC is a VCF with genotypes and VEP annotations, or genotypes of any format (.bed, .pgen, .bgen, VCF) with
``--annotations``. ``--code copies`` stores the maximum number of copies of any counted variant (0, 1, 2: regenie's
``max`` mask) instead of the bit.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mrmfast.errors import UserError
from mrmfast.formats.genetics import FeatureTable
from mrmfast.formats.modality_writer import write_modality
from preprocess.genetics import cohort, command
from preprocess.genetics.burden import annotations as annotation_files
from preprocess.genetics.burden import scan, vcf, vep
from preprocess.genetics.burden.gene_bits import Tally
from preprocess.genetics.genotypes import Genotypes, find_files, open_genotypes
from preprocess.genetics.genotypes import reference as reference_genome
from preprocess.genetics.genotypes.files import ACCEPTED, format_of
from preprocess.genetics.genotypes.vcf_records import open_vcf

BLOCK_BYTES = 256 << 20
PAIR_LEDGER = ("variant", "alt_frequency", "fate", "gene", "why")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``burden``."""
    command.add_common_arguments(
        parser, f"{ACCEPTED}: a VCF annotated by VEP, or genotypes of any format with --annotations"
    )
    command.add_genotype_arguments(parser)
    parser.add_argument(
        "--max-maf",
        type=float,
        default=0.01,
        help="upper limit of the minor allele frequency, exclusive (default 0.01)",
    )
    parser.add_argument(
        "--min-polyphen", type=float, default=0.8, help="minimum PolyPhen score of a missense variant (default 0.8)"
    )
    parser.add_argument(
        "--max-sift",
        type=float,
        default=0.2,
        help="maximum SIFT score of a missense variant; 0 is deleterious (default 0.2)",
    )
    parser.add_argument(
        "--missense-rule",
        choices=("either", "mean", "none"),
        default="either",
        help="which missense variants count: either prediction reaches its threshold (default); the mean of PolyPhen "
        "and 1 - SIFT reaches --min-polyphen; or none",
    )
    parser.add_argument(
        "--biotype", default="protein_coding", help="biotype of the transcripts that count (default protein_coding)"
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        type=Path,
        help="annotations for SRC without VEP annotations: a VCF of sites from VEP, or a regenie annotation file "
        "(variant, gene, category)",
    )
    parser.add_argument(
        "--sets", metavar="FILE", type=Path, help="regenie set list: gene, chromosome, position, variants"
    )
    parser.add_argument("--masks", metavar="FILE", type=Path, help="regenie mask file: name, categories")
    parser.add_argument("--mask", metavar="NAME", help="a mask name of --masks, or categories joined by commas")
    parser.add_argument(
        "--reference",
        choices=("a1", "a2", "ref-first", "ref-last"),
        help="reference allele, with a regenie annotation file: a1 (.bim column 5) or a2 (column 6) for .bed, "
        "ref-first or ref-last for .bgen; not for .pgen and VCF, which name the reference allele",
    )
    parser.add_argument(
        "--code",
        choices=("carrier", "copies"),
        default="carrier",
        help="stored value: one carrier bit (default), or the maximum number of copies of any counted variant",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; see the module's docstring for the rules.

    Raises
    ------
    UserError
        An option or a file is invalid, or no variant counts.
    """
    if not 0 < arguments.max_maf <= 0.5:
        raise UserError(f"--max-maf {arguments.max_maf}: give a frequency above 0, up to 0.5")
    with command.writing(arguments, "burden", ["burden"]):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    split, pseudonyms = command.check_target(arguments, ["burden"])
    rule = vep.HarmRule(arguments.min_polyphen, arguments.max_sift, arguments.missense_rule, arguments.biotype)
    ids, people, files, tally, counts = _scan(arguments, rule)
    hit = tally.hit()
    if not hit:
        raise UserError(
            f"{arguments.src}: no participant carries a harmful variant with a frequency below {arguments.max_maf}; "
            "check the annotation (IMPACT, SIFT, PolyPhen, or --mask) or raise --max-maf; "
            f"{_reasons(tally)}"
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
        "all_filters": arguments.all_filters,
    }
    report: dict[str, Any] = {
        "settings": {**settings, "split_seed": split.seed, "test_fraction": split.test_fraction},
        "files": files,
        "participants": people,
    }
    report |= _counts(tally, hit, features) | {"annotations": counts.report()}
    # The store is written last: if it exists, everything else exists. The next run removes partial files of a crash.
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
    shutil.rmtree(command.copies_folder(arguments.out, "burden"), ignore_errors=True)
    _summary(arguments.out, report)
    return 0


def _counts(tally: Tally, hit: list[tuple[int, str]], features: FeatureTable) -> dict[str, Any]:
    """Return the counts of alleles and genes for the report."""
    genes = [tally.genes[key] for key in hit]
    return {
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


def _summary(dataset: Path, report: dict[str, Any]) -> None:
    people, genes, fates = report["participants"], report["genes"], Counter(report["alleles"])
    chromosomes = len(report["features_per_group"])
    print(f"burden: {people['participants']} participants x {genes['kept']} genes on {chromosomes} chromosomes")
    command.print_participants(people)
    print(
        f"  counted: {fates['counted']}; excluded: {fates['not_harmful'] + fates['not_in_mask']} not harmful, "
        f"{fates['too_common']} too common, {fates['alt_is_major']} with a rare reference allele, "
        f"{fates['not_carried']} without carriers, {fates['not_autosomal']} not autosomal, "
        f"{fates['absent']} absent, {fates['filtered']} by FILTER, {fates['multi_allelic']} multi-allelic"
    )
    for name, text in NOTES.items():
        if report["annotations"][name]:
            print(f"  {report['annotations'][name]} {text}")
    print(f"  genes without a counted variant, excluded: {genes['without_counted_variant']}")
    print(f"  report: {dataset / 'reports' / 'burden.json'}")


def _reasons(tally: Tally) -> str:
    """Return the most frequent fates of the alleles, for a message."""
    return ", ".join(f"{count} {fate}" for fate, count in tally.fates.most_common(4) if count) or "no annotated allele"


# Count of the annotations -> what is told if it is not 0.
NOTES = {
    "annotations_malformed": "annotations are malformed and excluded",
    "annotations_allele_unknown": "harmful annotations name an allele that their site does not have: their carriers do "
    "not count; annotate with --allele_number",
    "annotations_without_biotype": "annotations have no BIOTYPE and do not count; annotate with --biotype",
    "missense_without_prediction": "missense annotations have no prediction and do not count",
}
Scanned = tuple[list[str], dict[str, int], list[str], Tally, vep.CsqCounts]
OF_TABLES = ("sets", "masks", "mask", "reference")


def _scan(arguments: argparse.Namespace, rule: vep.HarmRule) -> Scanned:
    """Scan SRC: VCFs that contain VEP annotations, or genotypes with separate annotations."""
    paths = find_files(arguments.src)
    if arguments.annotations is not None:
        return _scan_genotypes(arguments, rule, paths)
    if format_of(paths[0]) == ".vcf":
        return _scan_annotated_vcfs(arguments, rule, paths)
    raise UserError(
        f"--annotations: required for {arguments.src}; give a VCF of its sites from Ensembl VEP, or a table of "
        "variant, gene, category"
    )


def _scan_annotated_vcfs(arguments: argparse.Namespace, rule: vep.HarmRule, paths: list[Path]) -> Scanned:
    _refuse(arguments, OF_TABLES, "applies to a table of --annotations only; give a table, or remove the option")
    _refuse(arguments, ("sample",), "a VCF names its samples itself; remove the option")
    samples = list(open_vcf(paths[0]).samples)
    chosen, people = cohort.select(samples, arguments.keep, paths[0])
    ids, everyone = [samples[row] for row in chosen], cohort.everyone(samples)
    tally, counts = Tally(len(ids), arguments.code == "copies"), vep.CsqCounts()
    with command.ledger(arguments.out, "burden_variants", vcf.LEDGER_COLUMNS) as file:
        for path in paths:
            vcf.scan(path, ids, everyone, rule, arguments.max_maf, tally, file, counts, arguments.all_filters)
        counts.check(rule, arguments.src)
    return ids, people, [path.name for path in paths], tally, counts


def _scan_genotypes(arguments: argparse.Namespace, rule: vep.HarmRule, paths: list[Path]) -> Scanned:
    annotation_path: Path = arguments.annotations
    genotypes = open_genotypes(
        arguments.src,
        keep=arguments.keep,
        cache=command.copies_folder(arguments.out, "burden"),
        samples=arguments.sample,
        all_filters=arguments.all_filters,
    )
    if annotation_path.is_dir() or format_of(annotation_path) == ".vcf":
        _refuse(
            arguments,
            OF_TABLES,
            "applies to a table of --annotations only; VEP's sites name genes and alleles; remove the option",
        )
        annotations = annotation_files.read_vep(annotation_path, rule, genotypes.variants, arguments.all_filters)
    else:
        alt_is_reference = _alt_is_reference(genotypes, arguments.reference)
        annotations = annotation_files.read_tables(
            *(annotation_path, arguments.sets, arguments.masks, arguments.mask),
            *(genotypes.variants, alt_is_reference),
        )
    tally = Tally(len(genotypes.samples), arguments.code == "copies")
    with command.ledger(arguments.out, "burden_variants", PAIR_LEDGER) as file:
        scan.scan(genotypes, annotations, arguments.max_maf, tally, file, BLOCK_BYTES)
    files = [path.name for path in paths]
    return genotypes.samples.tolist(), genotypes.counts, files, tally, annotations.counts


def _alt_is_reference(genotypes: Genotypes, reference: str | None) -> bool:
    """Return whether the genotypes call the reference allele ``alt``: a table does not name the harmful allele.

    Raises
    ------
    UserError
        ``--reference`` is required and missing, or given for a format that names REF.
    """
    file = genotypes.files[0]
    kind = format_of(file.path)
    if kind in (".pgen", ".vcf"):
        if reference is not None:
            raise UserError(f"--reference: a {kind} file names REF; remove the option")
        return False
    return reference_genome.alt_is_reference(file, reference)


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name}: {why}")
