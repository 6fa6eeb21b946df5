"""``python -m preprocess pgs``: PGS Catalog scoring files + genotypes -> z-scored polygenic scores.

:mod:`.match` finds the variant of every row. :mod:`.score_pass` computes all scores in one pass over the genotypes
(with ``--engine plink2``, plink2 does). The scores are z-scored with the mean and standard deviation of the training
split. Chromosomes 1-22 and X count, as in published scores and ``plink2 --score``. Dosages are scored if the files
contain them (.pgen, .bgen, VCF with DS or GP), otherwise hard calls. ``--hard-calls`` scores hard calls always: more of
them are missing, because a dosage far from an integer gives no call.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.genetics import FeatureTable
from mrmfast.formats.modality_writer import write_modality
from preprocess.genetics import cohort, command, standardise
from preprocess.genetics.genotypes import Genotypes, open_genotypes
from preprocess.genetics.genotypes.files import ACCEPTED
from preprocess.genetics.pgs import plink2, scoring_file
from preprocess.genetics.pgs.match import VariantIndex
from preprocess.genetics.pgs.matches import FATES
from preprocess.genetics.pgs.score_folder import RowLedger, find_scores, read_scores
from preprocess.genetics.pgs.score_pass import ScorePass, Weights

PARTICIPANTS_PER_BLOCK = 8192
PARTS = 4
LEAST_MEMORY = 64
LINES = 10  # maximum number of scores that the summary lists
Blocks = Callable[[], Iterator[tuple[int, np.ndarray]]]
"""Yields (first participant, sums) for blocks of participants; each call starts at the first block."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pgs``."""
    command.add_common_arguments(parser, "a folder of PGS Catalog scoring files (.txt, .txt.gz), or one of them")
    parser.add_argument("--genotypes", type=Path, required=True, help=ACCEPTED)
    command.add_genotype_arguments(parser)
    parser.add_argument("--build", default="GRCh38", help="genome build of the genotypes' positions (default GRCh38)")
    parser.add_argument(
        "--assume-build", metavar="BUILD", help="genome build of scoring files without a build in the header"
    )
    parser.add_argument(
        "--ambiguous",
        choices=("drop", "keep"),
        default="drop",
        help="strand-ambiguous variants (A/T, C/G): drop (default, as pgscatalog-match) or keep with the alleles as "
        "written",
    )
    parser.add_argument(
        "--min-overlap",
        type=float,
        default=0.75,
        help="smallest share of a score's rows that must match; scores below are excluded (default 0.75, as "
        "pgscatalog-match); lower it for array genotypes without imputation",
    )
    parser.add_argument("--autosomes-only", action="store_true", help="exclude chromosome X")
    parser.add_argument("--hard-calls", action="store_true", help="score hard calls even if the files contain dosages")
    parser.add_argument(
        "--engine",
        choices=("own", "plink2"),
        default="own",
        help="own (default), or plink2 --score, which must be installed",
    )
    parser.add_argument(
        "--memory", metavar="MB", type=int, default=2048, help="memory for sums and blocks in MB (default 2048)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; see the module's docstring for the rules.

    Raises
    ------
    UserError
        An option or a file is invalid, or no score can be used.
    """
    with command.writing(arguments, "pgs", ["pgs"]):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    rule, pseudonyms = command.check_target(arguments, ["pgs"])
    build = _check(arguments)
    paths = find_scores(arguments.src)
    copies = command.copies_folder(arguments.out, "pgs")
    genotypes = open_genotypes(
        arguments.genotypes,
        keep=arguments.keep,
        cache=copies,
        memory=arguments.memory,
        dosages=not arguments.hard_calls,
        samples=arguments.sample,
        all_filters=arguments.all_filters,
    )
    participants = pseudonyms.of(genotypes.samples)
    train = cohort.training_rows(participants, rule, arguments.genotypes, least=2)
    index = VariantIndex(genotypes.variants, arguments.ambiguous == "keep", arguments.autosomes_only)
    entries, weights = _match(arguments, paths, build, genotypes, index)
    print(
        f"pgs: {len(genotypes.samples)} participants x {len(weights)} scores: "
        f"about {len(genotypes.samples) * len(weights) * 4 / 1e6:.1f} MB before compression"
    )
    settings = {
        "build": build,
        "ambiguous": arguments.ambiguous,
        "autosomes_only": arguments.autosomes_only,
        "min_overlap": arguments.min_overlap,
        "all_filters": arguments.all_filters,
        "engine": arguments.engine,
        "values": "hard calls" if _scores_hard_calls(arguments, genotypes) else "dosages",
        "missing": "2 x effect allele frequency of the training split",
    }
    with tempfile.TemporaryDirectory(prefix=".pgs.", dir=arguments.out) as folder:
        blocks, passed = _sum(arguments, genotypes, weights, train, Path(folder))
        features, kept, mean, scale = _standardise(arguments.src, entries, blocks, train)
        command.claim(arguments.out, rule, pseudonyms)
        report = {
            "settings": {**settings, "assume_build": arguments.assume_build}
            | {"split_seed": rule.seed, "test_fraction": rule.test_fraction},
            "participants": {**genotypes.counts, "training": int(train.sum())},
            "variants": {
                "in_files": len(genotypes.variants),
                "chromosome_not_scored": int((~index.scored).sum()),
                "filtered": int((~index.passes).sum()),
                "no_sequence": int((~index.has_sequence).sum()),
                "used": len(weights.variants(len(genotypes.variants))),
                **passed,
            },
            "files": {"in_folder": len(paths), "used": len(kept), "excluded": len(paths) - len(kept)},
            "scores": entries,
        }
        # The store is written last: if it exists, everything else exists. The next run removes partial files of a
        # crash.
        command.write_report(arguments.out, "pgs", report)
        scaled = ((sums[:, kept] - mean) / scale for _, sums in blocks())
        write_modality(arguments.out, "pgs", "float", participants, features, scaled, attributes=settings)
    shutil.rmtree(copies, ignore_errors=True)
    _summary(arguments.out, report)
    return 0


def _match(
    arguments: argparse.Namespace, paths: list[Path], build: str, genotypes: Genotypes, index: VariantIndex
) -> tuple[list[dict[str, Any]], Weights]:
    """Match every scoring file and write the fate of every row.

    Raises
    ------
    UserError
        No score can be used.
    """
    with write_aside(arguments.out / "reports" / "pgs_variants.parquet", "wb") as file:
        ledger = RowLedger(file, genotypes.variants["id"].to_numpy(object))
        entries, weights = read_scores(paths, build, arguments.assume_build, index, ledger, arguments.min_overlap)
        ledger.close()
        if not len(weights):
            raise UserError(
                f"{arguments.src}: none of {len(paths)} scores can be used with {arguments.genotypes}, e.g. "
                f"{entries[0]['file']}: {entries[0]['reason']}; check --build {build} and the "
                "files, or lower --min-overlap"
            )
    return entries, weights


def _standardise(
    source: Path, entries: list[dict[str, Any]], blocks: Blocks, train: np.ndarray
) -> tuple[FeatureTable, np.ndarray, np.ndarray, np.ndarray]:
    """Fit the mean and standard deviation of every score on the training split and exclude constant scores.

    Parameters
    ----------
    entries : list of dict
        Report entries of all scoring files. Used entries get ``mean`` and ``scale``; a constant score becomes excluded.

    Returns
    -------
    FeatureTable
    kept : ndarray of int64, shape (features,)
        Columns of the sums, one per kept score.
    mean, scale : ndarray of float64, shape (features,)

    Raises
    ------
    UserError
        Every score is constant.
    """
    mean, scale, constant = standardise.fit_blocks(
        lambda: (sums[train[start : start + len(sums)]] for start, sums in blocks())
    )
    used = [entry for entry in entries if entry["status"] == "used"]
    for number, entry in enumerate(used):
        entry |= {"mean": mean[number], "scale": scale[number]}
        if constant[number]:
            entry |= {"status": "excluded", "reason": "the same value for every training participant"}
    kept = np.flatnonzero(~constant)
    if not len(kept):
        raise UserError(f"{source}: every score is constant over the training split; use more participants")
    parts = np.repeat(range(PARTS), [len(part) for part in np.array_split(kept, PARTS)])
    features = FeatureTable.build(
        [used[number]["score"] for number in kept],
        [f"part{1 + part}" for part in parts],
        mean=mean[kept],
        scale=scale[kept],
    )
    return features, kept, mean[kept], scale[kept]


def _check(arguments: argparse.Namespace) -> str:
    """Check the options and return the canonical name of the build."""
    build = scoring_file.canonical_build(arguments.build) or "none"
    if build not in scoring_file.BUILDS.values():
        known = ", ".join(dict.fromkeys(scoring_file.BUILDS.values()))
        raise UserError(f"--build {arguments.build}: unknown; give the build of the genotypes ({known})")
    if not 0 <= arguments.min_overlap <= 1:
        raise UserError(f"--min-overlap {arguments.min_overlap}: must be from 0 to 1")
    if arguments.memory < LEAST_MEMORY:
        raise UserError(f"--memory {arguments.memory}: give at least {LEAST_MEMORY} MB")
    if arguments.engine == "plink2":
        plink2.find()
        if arguments.hard_calls:
            raise UserError("--hard-calls: plink2 --score uses dosages if the files contain any; remove one option")
    return build


def _scores_hard_calls(arguments: argparse.Namespace, genotypes: Genotypes) -> bool:
    return arguments.hard_calls or not any(file.has_dosages for file in genotypes.files)


def _sum(
    arguments: argparse.Namespace, genotypes: Genotypes, weights: Weights, train: np.ndarray, folder: Path
) -> tuple[Blocks, dict[str, int]]:
    """Compute the sums; return a reader of the sums in blocks of (first participant, sums), and counts.

    A file holds the sums: participants x scores in float64 are 1.9 GB for UK Biobank.
    """
    raw = folder / "sums"
    counts: dict[str, int] = {}
    with open(raw, "wb") as file:
        if arguments.engine == "plink2":
            file.write(plink2.score(genotypes, weights, train, arguments.memory, folder).tobytes())
        else:
            hard_calls = _scores_hard_calls(arguments, genotypes)
            score_pass = ScorePass(genotypes, weights, train, hard_calls, arguments.memory << 20)
            for _, sums in score_pass.blocks():
                for start in range(0, len(sums), PARTICIPANTS_PER_BLOCK):
                    file.write(np.ascontiguousarray(sums[start : start + PARTICIPANTS_PER_BLOCK]).tobytes())
            counts = {"all_missing_in_training": score_pass.never, "missing_values": score_pass.missing}

    def blocks() -> Iterator[tuple[int, np.ndarray]]:
        with open(raw, "rb") as file:
            for start in range(0, len(train), PARTICIPANTS_PER_BLOCK):
                count = min(PARTICIPANTS_PER_BLOCK, len(train) - start)
                yield start, np.fromfile(file, np.float64, count * len(weights)).reshape(count, len(weights))

    return blocks, counts


def _summary(dataset: Path, report: dict[str, Any]) -> None:
    people, files = report["participants"], report["files"]
    used = [entry for entry in report["scores"] if entry["status"] == "used"]
    rows = {key: sum(entry.get(key, 0) for entry in used) for key in ("rows", "malformed", *FATES)}
    print(
        f"pgs: {people['participants']} participants x {files['used']} scores, from {files['in_folder']} files "
        f"({files['excluded']} excluded)"
    )
    command.print_participants(people)
    matched = rows["matched"] + rows["matched_flipped"]
    print(
        f"  rows of used scores: {rows['rows']}, {matched} matched ({rows['matched_flipped']} by strand flip), "
        f"{rows['ambiguous']} strand-ambiguous, {rows['absent']} absent from the genotypes, "
        f"{rows['alleles_differ']} with other alleles, {rows['malformed']} malformed"
    )
    variants = report["variants"]
    print(
        f"  variants used: {variants['used']} of {variants['in_files']}; excluded: {variants['filtered']} by FILTER, "
        f"{variants['no_sequence']} with an allele without sequence (*, <DEL>)"
    )
    damaged = [entry for entry in report["scores"] if entry.get("malformed")]
    _list("malformed", [f"{entry['score']}: {entry['malformed']} of {entry['rows']} rows" for entry in damaged])
    excluded = [entry for entry in report["scores"] if entry["status"] == "excluded"]
    _list("excluded", [f"{entry['file']}: {entry['reason']}" for entry in excluded])
    print(f"  report: {dataset / 'reports' / 'pgs.json'} (lists every score excluded, with the reason)")


def _list(title: str, lines: list[str]) -> None:
    for line in lines[:LINES]:
        print(f"  {title}: {line}")
    if len(lines) > LINES:
        print(f"  {title}: {len(lines) - LINES} more scores; see the report")
