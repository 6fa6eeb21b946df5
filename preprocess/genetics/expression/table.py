"""The TCGA table of ``expression``: reading, conversion to numbers, and one row per case."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from preprocess.genetics.text import NOT_UTF8

CASE = "case_id"
MISSING_WORDS = ("", "na", "nan", "null")
SUFFIXES = {"rna": "_rnaseq", "cnv": "_cnv", "mutations": "_mut"}


def read_table(path: Path) -> pd.DataFrame:
    """Read every column of the table as text.

    Raises
    ------
    UserError
        The file is not a CSV, has no column ``case_id``, no genetics column, a repeated column, or no rows.
    """
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skipinitialspace": True}
    try:
        # The header is read as a row: pandas renames a repeated column silently.
        header = pd.read_csv(path, header=None, nrows=1, **options)
        table = pd.read_csv(path, **options)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {NOT_UTF8}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        # Parser errors of pandas are ValueErrors. Their text may quote a row, so the message has the type.
        raise UserError(
            f"{path}: cannot be read as CSV ({type(error).__name__}); give a comma-separated table"
        ) from error
    if CASE not in table.columns:
        raise UserError(f"{path}: has no column {CASE}; rename the patient-ID column to {CASE}")
    if not any(name.endswith(suffix) for name in table.columns for suffix in SUFFIXES.values()):
        endings = ", ".join(SUFFIXES.values())
        raise UserError(f"{path}: has no column ending in {endings}; rename the genetics columns to end in these")
    names = [str(name) for name in header.iloc[0]]
    for name in names:
        if names.count(name) > 1 and (name == CASE or name.endswith(tuple(SUFFIXES.values()))):
            raise UserError(
                f"{path}: line 1 names column {name} {names.count(name)} times; remove or rename all but one"
            )
    if not len(table):
        raise UserError(f"{path}: has no rows; give a table with one row per slide or case")
    return table


def numbers(table: pd.DataFrame, columns: list[str], path: Path) -> np.ndarray:
    """Convert columns to float64, blank and NA to NaN; shape (rows, columns).

    Raises
    ------
    UserError
        A value is neither a number nor missing; the message names column and line.
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
        The first row of every case, in file order.
    ndarray of float64, shape (cases, columns)
    int
        Number of cases whose rows differ.
    """
    codes, _ = pd.factorize(cases)
    _, first = np.unique(codes, return_index=True)
    differs = ~((values == values[first][codes]) | (np.isnan(values) & np.isnan(values[first][codes]))).all(axis=1)
    return first, values[first], len(np.unique(codes[differs]))
