"""``python -m preprocess expression``: a TCGA table -> RNA expression, copy number and mutations per case.

The table has a row per slide and columns ``case_id``, ``NAME_rnaseq``, ``NAME_cnv``, ``NAME_mut`` (PORPOISE's tables).
A case becomes one row: its slides carry the same genetics; where they do not, the first is taken
and the case counted. RNA is z-scored on the training split; copy number (-2..2) and mutations (0, 1) stay as they are.

The modalities are one unit: each carries a hash of the table and the settings. A run that was killed between two of
them is completed by the same command, which writes the unit anew.
"""

from __future__ import annotations

import argparse
import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from mrmfast.formats.genetics import Encoding, FeatureTable
from mrmfast.formats.manifest import SplitRule
from mrmfast.formats.modality_writer import write_modality
from mrmfast.formats.pseudonyms import Pseudonyms
from preprocess.genetics import cohort, command, standardise
from preprocess.genetics.expression.unfinished import clear_unfinished

CASE = "case_id"
RNA_PER_PART = 256
MISSING_WORDS = ("", "na", "nan", "null")
SUFFIXES = {"rna": "_rnaseq", "cnv": "_cnv", "mutations": "_mut"}
LEDGER_COLUMNS = ("modality", "feature", "fate", "missing_cases", "mean", "scale")


@dataclass(frozen=True)
class Block:
    """One modality of the table, a row per case.

    Attributes
    ----------
    features : FeatureTable
    values : ndarray of float32 or uint8, shape (cases, features)
        As stored.
    missing : ndarray of int64, shape (features,)
        Cases without a value.
    counts : dict
        For the report.
    """

    encoding: Encoding
    features: FeatureTable
    values: np.ndarray
    missing: np.ndarray
    counts: dict[str, int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``expression``."""
    command.add_common_arguments(parser, "a CSV (or zipped CSV) with case_id and *_rnaseq, *_cnv, *_mut columns")


def read_table(path: Path) -> pd.DataFrame:
    """Read the table, every column as text.

    Raises
    ------
    UserError
        Not a CSV, no ``case_id``, none of the three kinds of columns, one of them twice, or no rows.
    """
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skipinitialspace": True}
    try:
        # As a row, since pandas would name a repeated column anew, and it would be lost without a word.
        header = pd.read_csv(path, header=None, nrows=1, **options)
        table = pd.read_csv(path, **options)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        # pandas' parser and decoding errors are ValueErrors; their text may quote the row, so only the type is shown.
        raise UserError(
            f"{path}: cannot be read as CSV ({type(error).__name__}); give a comma-separated table"
        ) from error
    if CASE not in table.columns:
        raise UserError(f"{path}: has no column {CASE}; name the column with the patient ids so")
    if not any(name.endswith(suffix) for name in table.columns for suffix in SUFFIXES.values()):
        raise UserError(f"{path}: has no column ending in {', '.join(SUFFIXES.values())}; name the genetics columns so")
    names = [str(name) for name in header.iloc[0]]
    for name in names:
        if names.count(name) > 1 and (name == CASE or name.endswith(tuple(SUFFIXES.values()))):
            raise UserError(
                f"{path}: line 1 names column {name} {names.count(name)} times; remove or rename all but one"
            )
    if not len(table):
        raise UserError(f"{path}: has no rows; give a table with a row per slide or case")
    return table


def numbers(table: pd.DataFrame, columns: list[str], path: Path) -> np.ndarray:
    """Convert columns to float64, blank and NA to NaN; shape (rows, columns).

    Raises
    ------
    UserError
        A value is neither a number nor missing; names its column and line.
    """
    values = np.empty((len(table), len(columns)))
    for number, name in enumerate(columns):
        column = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
        unread = np.flatnonzero(~np.isfinite(column))
        is_missing = table[name].iloc[unread].str.strip().str.lower().isin(MISSING_WORDS).to_numpy(bool)
        bad = unread[~is_missing]
        if len(bad):
            line = int(bad[0]) + 2
            raise UserError(f"{path}: line {line}: column {name} is not a number; correct it or leave it blank")
        values[:, number] = column
    return values


def one_row_per_case(cases: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Keep the first row of every case.

    Parameters
    ----------
    cases : ndarray of str, shape (rows,)
    values : ndarray of float64, shape (rows, columns)

    Returns
    -------
    ndarray of int64, shape (cases,)
        Rows kept, in file order.
    ndarray of float64, shape (cases, columns)
    int
        Cases whose rows differ.
    """
    codes, _ = pd.factorize(cases)
    _, first = np.unique(codes, return_index=True)
    differs = ~((values == values[first][codes]) | (np.isnan(values) & np.isnan(values[first][codes]))).all(axis=1)
    return first, values[first], len(np.unique(codes[differs]))


def make_block(modality: str, names: list[str], values: np.ndarray, train: np.ndarray, path: Path) -> Block:
    """Prepare one modality for the store.

    Parameters
    ----------
    modality : {"rna", "cnv", "mutations"}
    names : list of str
        Features, without suffix.
    values : ndarray of float64, shape (cases, features)
        NaN is missing.
    train : ndarray of bool, shape (cases,)
    path : Path
        For messages.
    """
    missing = np.isnan(values).sum(axis=0)
    counts = {"features": len(names), "missing_values": int(missing.sum())}
    if modality == "mutations":
        values = np.nan_to_num(values, nan=0.0)
        wrong = np.flatnonzero(~np.isin(values, (0, 1)).all(axis=0))
        if len(wrong):
            raise UserError(f"{path}: column {names[wrong[0]]}_mut holds values other than 0 and 1; correct the column")
        features = FeatureTable.build(names, ["mutations"] * len(names))
        return Block("binary", features, values.astype(np.uint8), missing, counts)
    if modality == "cnv":
        # 0 is both "no change" and the fill of a missing value.
        features = FeatureTable.build(names, ["cnv"] * len(names))
        return Block("float", features, values.astype(np.float32), missing, counts)
    mean, scale, constant = standardise.fit(values[train])
    counts["constant_in_training"] = int(constant.sum())
    parts = np.array_split(np.arange(len(names)), (len(names) + RNA_PER_PART - 1) // RNA_PER_PART)
    groups = [f"part{number}" for number, part in enumerate(parts, start=1) for _ in part]
    features = FeatureTable.build(names, groups, mean=mean, scale=scale)
    return Block("float", features, ((values - mean) / scale).astype(np.float32), missing, counts)


def prepare(
    path: Path, rule: SplitRule, pseudonyms: Pseudonyms, keep: Path | None
) -> tuple[np.ndarray, np.ndarray, dict[str, Block], dict[str, int]]:
    """Read the table and prepare every modality it holds.

    Returns
    -------
    cases : ndarray of str, shape (cases,)
        As stored.
    train : ndarray of bool, shape (cases,)
    blocks : dict of Block
        By modality.
    counts : dict
        Of slides and cases.
    """
    table = read_table(path)
    columns_of = {
        modality: [name for name in table.columns if name.endswith(suffix)] for modality, suffix in SUFFIXES.items()
    }
    columns = [name for names in columns_of.values() for name in names]
    values = numbers(table, columns, path)
    first, values, differing = one_row_per_case(table[CASE].str.strip().to_numpy(object), values)
    cases = table[CASE].str.strip().to_numpy(object)[first]
    chosen, people = cohort.select(cases.tolist(), keep, path)
    cases, values = pseudonyms.of(cases[chosen]), values[chosen]
    train = cohort.training_rows(cases, rule, path, least=2)
    blocks: dict[str, Block] = {}
    start = 0
    for modality, names in columns_of.items():
        part = values[:, start : start + len(names)]
        start += len(names)
        if names:
            bare = [name.removesuffix(SUFFIXES[modality]) for name in names]
            blocks[modality] = make_block(modality, bare, part, train, path)
    counts = {"slides": len(table), "cases_whose_slides_differ": differing, **people}
    return cases, train, blocks, counts


def run(arguments: argparse.Namespace) -> int:
    """Run the command; see the module's docstring for the rules.

    Raises
    ------
    UserError
        Options or a table that is at fault.
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
    # The store comes last: where all of it stands, everything stands.
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
    print(f"  cases whose slides differ (first taken): {counts['cases_whose_slides_differ']}")
    print(f"  report: {arguments.out / 'reports' / 'expression.json'}")
    return 0


def _unit(table: Path, rule: SplitRule, cases: np.ndarray) -> str:
    """Hash what decides every value: the table, who is in, and who is training data."""
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
