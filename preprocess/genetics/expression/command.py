"""``python -m preprocess expression``: a TCGA table -> RNA expression, copy number and mutations per case.

The table has one row per slide and the columns ``case_id``, ``NAME_rnaseq``, ``NAME_cnv``, ``NAME_mut`` (as PORPOISE's
tables). A case becomes one row, because the slides of a case have the same genetics. If the slides differ, the first
slide counts, and the report counts the case. RNA is z-scored on the training split; copy number (-2..2) and mutations
(0, 1) are stored unchanged.

The modalities are one unit: each modality stores a hash of the table and the settings. If a run is killed between two
modalities, the same command writes all modalities again.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from mrmfast.formats.manifest import SplitRule
from mrmfast.formats.modality_writer import write_modality
from preprocess.genetics import command
from preprocess.genetics.expression.modalities import RNA_PER_PART, Block, prepare
from preprocess.genetics.expression.table import SUFFIXES
from preprocess.genetics.expression.unfinished import clear_unfinished

LEDGER_COLUMNS = ("modality", "feature", "fate", "missing_cases", "mean", "scale")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``expression``."""
    command.add_common_arguments(parser, "CSV (or zipped CSV) with the columns case_id and *_rnaseq, *_cnv, *_mut")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; see the module's docstring for the rules.

    Raises
    ------
    UserError
        An option or the table is invalid.
    """
    with command.writing(arguments, "expression", SUFFIXES):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    rule, pseudonyms = command.check_target(arguments, [])
    cases, train, blocks, counts = prepare(arguments.src, rule, pseudonyms, arguments.keep)
    unit = _unit(arguments.src, rule, cases)
    clear_unfinished(arguments.out, list(blocks), unit)
    command.claim(arguments.out, rule, pseudonyms)
    _write_ledger(arguments.out, blocks)
    report: dict[str, Any] = {
        "settings": {"rna_per_part": RNA_PER_PART, "split_seed": rule.seed, "test_fraction": rule.test_fraction},
        "files": [arguments.src.name],
        "participants": {**counts, "training": int(train.sum())},
        "modalities": {
            name: {**block.counts, "features_per_group": dict(block.features.groups())}
            for name, block in blocks.items()
        },
    }
    command.write_report(arguments.out, "expression", report)
    # The store is written last: if all modalities exist, everything else exists.
    for modality, block in blocks.items():
        settings = {
            "missing": "0" if modality == "mutations" else "NaN",
            "standardised": modality == "rna",
            "unit": unit,
        }
        write_modality(
            arguments.out, modality, block.encoding, cases, block.features, [block.values], attributes=settings
        )
    print(f"expression: {len(cases)} cases ({int(train.sum())} training), from {counts['slides']} rows")
    for name, block in blocks.items():
        groups = len(block.features.groups())
        print(f"  {name}: {len(block.features)} features in {groups} groups, {block.missing.sum()} values missing")
    print(f"  cases whose slides differ (the first slide counts): {counts['cases_whose_slides_differ']}")
    print(f"  report: {arguments.out / 'reports' / 'expression.json'}")
    return 0


def _unit(table: Path, rule: SplitRule, cases: np.ndarray) -> str:
    """Return a hash of the input of every value: the table, the included cases, and the split."""
    digest = hashlib.sha256(table.read_bytes())
    digest.update(f"{rule.seed}:{rule.test_fraction}:{RNA_PER_PART}:{len(cases)}:".encode())
    digest.update("\n".join(cases.tolist()).encode())
    return digest.hexdigest()


def _write_ledger(dataset: Path, blocks: dict[str, Block]) -> None:
    with command.ledger(dataset, "expression_features", LEDGER_COLUMNS) as file:
        for modality, block in blocks.items():
            features = block.features
            for name, missing, mean, scale in zip(
                features.name, block.missing, features.mean, features.scale, strict=True
            ):
                file.write(f"{modality}\t{name}\tkept\t{missing}\t{mean:.9g}\t{scale:.9g}\n")
