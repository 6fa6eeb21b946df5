"""Typed columns of one scoring file, read by Arrow, and the row numbers of damaged rows."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from mrmfast.errors import UserError
from preprocess.genetics.text import NOT_UTF8

COLUMNS = (
    "rsid",
    "chr_name",
    "chr_position",
    "effect_allele",
    "other_allele",
    "effect_weight",
    "hm_rsid",
    "hm_chr",
    "hm_pos",
    "hm_inferotherallele",
)
# Rows with these flags need a recoded genotype or a haplotype: a weight per copy would give another score.
FLAGS = ("is_dominant", "is_recessive", "is_haplotype", "is_diplotype", "is_interaction")
NUMERIC = {"chr_position": pa.int64(), "hm_pos": pa.int64(), "effect_weight": pa.float64()}


class UnusableScoreError(UserError):
    """A scoring file is excluded; the message is the reason, without the file's name."""


def read_rows(path: Path, columns: list[str], skip: int) -> tuple[dict[str, pa.ChunkedArray], np.ndarray, list[int]]:
    """Read the required columns.

    Returns
    -------
    dict of ChunkedArray
        By column: dictionary-encoded text for alleles, chromosomes and flags; numbers (null if blank) for positions and
        weights; text for a numeric column with invalid numbers.
    line : ndarray of int32
        1-based number of each data row.
    odd : list of int
        Numbers of data rows with too many or too few fields; these rows count as malformed.
    """
    typed: dict[str, pa.DataType] = {}
    for name in columns:
        if name in NUMERIC:
            typed[name] = NUMERIC[name]
        elif name in COLUMNS or name in FLAGS:
            typed[name] = pa.string() if name.endswith("rsid") else pa.dictionary(pa.int32(), pa.string())
    try:
        try:
            table, odd = _parse(path, columns, skip, typed)
        except pa.ArrowInvalid:  # an invalid number: numbers are read as text, so that only its row is lost
            table, odd = _parse(path, columns, skip, {**typed, **{n: pa.string() for n in typed if n in NUMERIC}})
    except (OSError, EOFError, zlib.error, pa.ArrowInvalid) as error:
        if "UTF8" in str(error):
            raise UnusableScoreError(NOT_UTF8) from error
        raise UnusableScoreError(f"cannot be read ({type(error).__name__}: damaged or not a scoring file)") from error
    line = np.arange(1, len(table) + len(odd) + 1, dtype=np.int32)
    if odd:
        line = np.setdiff1d(line, odd, assume_unique=True)
    return {name: table[name] for name in table.column_names}, line, odd


def _parse(path: Path, columns: list[str], skip: int, typed: dict[str, pa.DataType]) -> tuple[pa.Table, list[int]]:
    odd: list[int] = []

    def note(row: csv.InvalidRow) -> str:
        odd.append(row.number - skip)
        return "skip"

    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None) as stream:
            table = csv.read_csv(
                stream,
                # Arrow numbers rows only with one thread per file; several files are read in parallel.
                csv.ReadOptions(use_threads=False, column_names=columns, skip_rows=skip, block_size=8 << 20),
                # Locus names contain stray quotes: as quoting they would swallow the lines that follow.
                csv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=note),
                csv.ConvertOptions(include_columns=list(typed), column_types=typed, strings_can_be_null=False),
            )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return pa.table({name: pa.array([], kind) for name, kind in typed.items()}), odd
        raise
    return table, odd


def map_text(column: pa.ChunkedArray, function: Callable[[str], Any], dtype: type) -> np.ndarray:
    """Apply a function to a column, once per distinct text: alleles and chromosomes have few distinct values."""
    parts = [
        np.array([function(text) for text in chunk.dictionary.to_pylist()], dtype=dtype)[
            chunk.indices.to_numpy(zero_copy_only=False)
        ]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate(parts) if parts else np.array([], dtype=dtype)


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Return float64; NaN for a blank or an invalid number."""
    if pa.types.is_string(column.type):
        return pd.to_numeric(pd.Series(column.to_pylist(), dtype=object), errors="coerce").to_numpy(np.float64)
    return pc.fill_null(pc.cast(column, pa.float64()), np.nan).to_numpy()


def integers(column: pa.ChunkedArray) -> np.ndarray:
    """Return int64; 0 for a blank or an invalid number."""
    if pa.types.is_string(column.type):
        return np.nan_to_num(numbers(column), nan=0, posinf=0, neginf=0).astype(np.int64)
    return pc.fill_null(column, 0).to_numpy()


def rsids(column: pa.ChunkedArray) -> np.ndarray:
    """Return the number of every rsID, int64; 0 for any other text."""
    digits = pc.if_else(pc.starts_with(column, "rs"), pc.utf8_slice_codeunits(column, 2), "0")
    try:
        return pc.cast(digits, pa.int64()).to_numpy()
    except pa.ArrowInvalid:  # e.g. "rs12,rs13"; rare, so the slower regular expression runs only then
        return pc.cast(pc.if_else(pc.match_substring_regex(digits, r"^\d{1,18}$"), digits, "0"), pa.int64()).to_numpy()
