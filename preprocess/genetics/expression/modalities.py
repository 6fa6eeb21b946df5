"""The modalities of a TCGA table: RNA expression, copy number and mutations, with one row per case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrmfast.arithmetic import ceil_div
from mrmfast.errors import UserError
from mrmfast.formats.genetics import Encoding, FeatureTable
from mrmfast.formats.manifest import SplitRule
from mrmfast.formats.pseudonyms import Pseudonyms
from preprocess.genetics import cohort, standardise
from preprocess.genetics.expression.table import CASE, SUFFIXES, numbers, one_row_per_case, read_table

RNA_PER_PART = 256


@dataclass(frozen=True)
class Block:
    """One modality of the table, with one row per case.

    Attributes
    ----------
    features : FeatureTable
    values : ndarray of float32 or uint8, shape (cases, features)
        Values as stored.
    missing : ndarray of int64, shape (features,)
        Number of cases without a value.
    counts : dict
        Counts for the report.
    """

    encoding: Encoding
    features: FeatureTable
    values: np.ndarray
    missing: np.ndarray
    counts: dict[str, int]


def make_block(modality: str, names: list[str], values: np.ndarray, train: np.ndarray, path: Path) -> Block:
    """Prepare one modality for the store.

    Parameters
    ----------
    modality : {"rna", "cnv", "mutations"}
    names : list of str
        Feature names without suffix.
    values : ndarray of float64, shape (cases, features)
        NaN is missing.
    train : ndarray of bool, shape (cases,)
    path : Path
        The table, for error messages.

    Raises
    ------
    UserError
        A mutation is neither 0 nor 1.
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
        # The model fills a missing copy number with 0, which also means "no change".
        features = FeatureTable.build(names, ["cnv"] * len(names))
        return Block("float", features, values.astype(np.float32), missing, counts)
    mean, scale, constant = standardise.fit(values[train])
    counts["constant_in_training"] = int(constant.sum())
    parts = np.array_split(np.arange(len(names)), ceil_div(len(names), RNA_PER_PART))
    groups = [f"part{number}" for number, part in enumerate(parts, start=1) for _ in part]
    features = FeatureTable.build(names, groups, mean=mean, scale=scale)
    return Block("float", features, ((values - mean) / scale).astype(np.float32), missing, counts)


def prepare(
    path: Path, rule: SplitRule, pseudonyms: Pseudonyms, keep: Path | None
) -> tuple[np.ndarray, np.ndarray, dict[str, Block], dict[str, int]]:
    """Read the table and prepare every modality that it contains.

    Returns
    -------
    cases : ndarray of str, shape (cases,)
        Case ids as stored.
    train : ndarray of bool, shape (cases,)
    blocks : dict of Block
        Blocks by modality.
    counts : dict
        Counts of slides and cases.
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
