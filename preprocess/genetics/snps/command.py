"""``python -m preprocess snps``: genotypes of any format -> 2-bit SNP codes, every n-th SNP of each chromosome.

Rule of the original study: on each chromosome 1-22 the SNPs 0, 100, 200, ... in file order. The stride restarts on each
chromosome (UK Biobank's array gives 7,854 SNPs). The stride counts all bi-allelic variants, also variants that a FASTA
excludes later. ``--variants`` lists the SNPs instead.

A code is the number of copies that differ from the reference genome. The store keeps missing calls as missing. On input
to the model, the most frequent code of the training split fills them (ties: the smaller code; all missing: 0). Of
variants with duplicate IDs the first counts.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mrmfast.errors import UserError
from mrmfast.formats.genetics import FeatureTable
from mrmfast.formats.manifest import SplitRule, read_manifest
from mrmfast.formats.modality_writer import ModalityWriter
from preprocess import parallel
from preprocess.genetics import cohort, command, remote
from preprocess.genetics.genotypes import Genotypes, open_genotypes
from preprocess.genetics.genotypes.files import ACCEPTED
from preprocess.genetics.genotypes.reference import NAMES, Oriented, orient
from preprocess.genetics.snps import parts
from preprocess.genetics.snps.ledger import fill_of, first_of_each_name, write_ledger
from preprocess.genetics.snps.variant_list import read_list

# Genotypes per second and worker, measured on two cores; only for the printed estimate.
RATE_BED, RATE_OTHER = 500e6, 30e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``snps``."""
    command.add_common_arguments(parser, ACCEPTED)
    command.add_genotype_arguments(parser)
    parser.add_argument(
        "--reference",
        choices=NAMES,
        help="reference allele: a1 (.bim column 5) or a2 (column 6) for .bed; ref-first or ref-last for .bgen; ref "
        "(default) or alt for .pgen and VCF; required for .bed and .bgen without --fasta",
    )
    parser.add_argument(
        "--fasta", metavar="FILE", type=Path, help="reference genome; decides the reference allele variant by variant"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--stride", type=int, default=100, help="keep every n-th SNP of a chromosome (default 100)")
    chosen.add_argument(
        "--variants",
        metavar="FILE",
        type=Path,
        help="file with variant IDs to keep, one per line, optionally followed by chromosome and position; a variant "
        "with another position is excluded",
    )
    parser.add_argument("--build", help="genome build of the positions, recorded in the store (e.g. GRCh38)")
    parallel.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; see the module's docstring for the rules.

    Raises
    ------
    UserError
        An option or a file is invalid.
    """
    if arguments.stride < 1:
        raise UserError(f"--stride {arguments.stride}: must be an integer of at least 1")
    memory = parallel.check_arguments(arguments)
    with remote.staged(arguments) as local, command.writing(local, "snps", ["snps"]):
        return _run(local, memory)


def _run(arguments: argparse.Namespace, memory: int) -> int:
    folder = arguments.out / f".snps{command.PARTS}"
    if "snps" in read_manifest(arguments.out).genetics:
        shutil.rmtree(folder, ignore_errors=True)  # of a run killed after the last rename
    rule, pseudonyms = command.check_target(arguments, ["snps"])
    copies = command.copies_folder(arguments.out, "snps")
    source = _open(arguments, copies)
    oriented = orient(source, arguments.reference, arguments.fasta)
    genotypes = replace(oriented.genotypes, samples=pseudonyms.of(source.samples))
    train = cohort.training_rows(genotypes.samples, rule, arguments.src)
    picked, elsewhere, absent = _pick(genotypes, arguments)
    names, is_first = first_of_each_name(genotypes.variants.iloc[picked])
    kept, names = picked[is_first], names[is_first]
    if not len(kept):
        raise UserError(
            f"{arguments.src}: none of {len(genotypes.variants)} SNPs is selected; change --stride or --variants"
        )
    settings = {
        "reference": "FASTA" if arguments.fasta else arguments.reference or "ref",
        "build": arguments.build or "not stated",
        "selection": arguments.variants.name if arguments.variants else f"stride {arguments.stride} per chromosome",
        "code": "copies of the allele that differs from the reference",
        "fill": "most frequent code of the training split; ties: the smaller; all missing: 0",
        "repeated_ids": "the first counts",
        "multi_allelic": "excluded",
        "all_filters": arguments.all_filters,
    }
    at_once = parts.participants_at_once(len(train), len(kept), memory)
    job = parts.Job(genotypes, kept, train, folder, at_once)
    counts, job = _make_parts(job, settings, memory, arguments)

    fill, missing = fill_of(counts), counts[:, 3]
    table = genotypes.variants.iloc[kept]
    features = FeatureTable.build(
        names,
        [f"chr{number}" for number in table["chromosome"]],
        chromosome=table["chromosome"].astype(str),
        position=table["position"],
        reference=table["ref"],
        alternative=table["alt"],
        fill=fill,
    )
    command.claim(arguments.out, rule, pseudonyms)
    write_ledger(arguments.out, oriented, (picked, elsewhere, kept), fill, counts)
    report = _report(arguments, rule, oriented, settings, features, counts)
    report["participants"]["training"] = int(train.sum())
    report["variants"] |= {"picked": len(picked), "duplicate_id": len(picked) - len(kept)}
    report["variants"] |= {"listed_absent": absent, "listed_elsewhere": len(elsewhere)}
    command.write_report(arguments.out, "snps", report)
    # The store and its manifest entry are written last: their presence means that the rest is complete.
    with ModalityWriter(arguments.out, "snps", "genotype", genotypes.samples, features, attributes=settings) as writer:
        for path, size in parts.finished_shards(job):
            writer.adopt_shard(path, size)
    shutil.rmtree(folder)
    shutil.rmtree(copies, ignore_errors=True)
    _print(report, missing, arguments)
    return 0


def _open(arguments: argparse.Namespace, copies: Path) -> Genotypes:
    return open_genotypes(
        arguments.src,
        keep=arguments.keep,
        cache=copies,
        memory=arguments.memory,
        samples=arguments.sample,
        all_filters=arguments.all_filters,
    )


def _pick(genotypes: Genotypes, arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the rows of the selected variants, the rows listed at another position, and the number of absent ids."""
    if arguments.variants is None:
        rank = genotypes.variants["rank"].to_numpy()
        return np.flatnonzero(rank % arguments.stride == 0), np.array([], dtype=np.int64), 0
    return read_list(arguments.variants, genotypes.variants)


def _make_parts(
    job: parts.Job, settings: dict[str, Any], memory: int, arguments: argparse.Namespace
) -> tuple[np.ndarray, parts.Job]:
    """Run both steps; return the counts of codes and the job with the packed parts."""
    direct = all(file.sliced for file in job.genotypes.files)
    blocks = [] if direct else parts.variant_blocks(job, memory)
    participants, snps = len(job.train), len(job.kept)
    size = participants * job.row_bytes
    # Space for the store, and for a copy of the source that can be read by participant.
    command.check_space(arguments.out, size * (1 if direct else 2))
    rate = (RATE_BED if direct else RATE_OTHER) * arguments.workers
    print(
        f"snps: {participants} participants x {snps} SNPs: {size / 1e6:,.0f} MB packed, "
        f"about {command.duration(2 + participants * snps / rate)} with {arguments.workers} workers"
    )
    if parts.claim_folder(job, settings, blocks):
        print("  reusing parts of an earlier run")
    if not direct:
        tasks = parts.extract_tasks(job, blocks)
        sizes = [sum(len(indices) for _, indices in task) for task in tasks]
        parallel.run_parts(parts.extract_part, job, tasks, sizes, arguments, "snps: read", "SNP")
        job = parts.extracted(job, blocks)
    starts = list(job.starts())
    sizes = np.diff([*starts, participants]).tolist()
    parallel.run_parts(parts.pack_part, job, starts, sizes, arguments, "snps: pack", "participant")
    return parts.total_counts(job), job


def _report(
    arguments: argparse.Namespace,
    rule: SplitRule,
    oriented: Oriented,
    settings: dict[str, Any],
    features: FeatureTable,
    counts: np.ndarray,
) -> dict[str, Any]:
    known = counts[:, :3].sum()
    return {
        "settings": {**settings, "split_seed": rule.seed, "test_fraction": rule.test_fraction},
        "files": [file.path.name for file in oriented.genotypes.files],
        "participants": dict(oriented.genotypes.counts),
        "variants": {
            "in_files": oriented.counts["variants"],
            **{
                key.removeprefix("variants_"): value
                for key, value in oriented.counts.items()
                if key.startswith("variants_")
            },
            "kept": len(features),
            "all_missing_in_training": int((counts[:, :3].sum(axis=1) == 0).sum()),
        },
        "features_per_group": dict(features.groups()),
        "missing_share_training": float(1 - known / counts.sum()),
    }


def _print(report: dict[str, Any], missing: np.ndarray, arguments: argparse.Namespace) -> None:
    people, variants = report["participants"], report["variants"]
    command.print_participants(people)
    print(
        f"  variants: {variants['in_files']} read, {variants['not_autosomal']} not autosomal, "
        f"{variants['filtered']} by FILTER, {variants['multi_allelic']} multi-allelic, {variants['no_sequence']} "
        f"with an allele without sequence (*, <DEL>), {variants['reference_mismatch']} not matching the FASTA, "
        f"{variants['swapped']} allele-swapped; {variants['picked']} selected: {variants['duplicate_id']} duplicate "
        f"IDs, {variants['all_missing_in_training']} without calls"
    )
    if variants["listed_absent"]:
        print(f"  {variants['listed_absent']} listed IDs are not in the genotypes")
    if variants["listed_elsewhere"]:
        print(f"  {variants['listed_elsewhere']} variants have another position than in the list and are excluded")
    if variants["reference_provisional"]:
        print(f"  {variants['reference_provisional']} REF alleles are provisional in the file; --reference decides")
    print(f"  missing calls in training: {report['missing_share_training']:.3%} ({int((missing > 0).sum())} SNPs)")
    print(f"  report: {arguments.out / 'reports' / 'snps.json'}")
