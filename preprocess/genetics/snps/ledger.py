"""What ``snps`` derives from counts and names of variants, and the fate of every variant in a ledger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from preprocess.genetics import command
from preprocess.genetics.genotypes.reference import Oriented
from preprocess.genetics.text import plain_cell

LEDGER_COLUMNS = (
    *("chromosome", "position", "id", "reference", "alternative", "swapped", "fate"),
    *("fill", "alt_frequency_train", "missing_train"),
)


def first_of_each_name(variants: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Name variants and mark the first of each name; a variant without id (``.``) is named by position and alleles.

    Returns
    -------
    ndarray of str, ndarray of bool, each of shape (variants,)
    """
    columns = [variants[name].astype(str) for name in ("chromosome", "position", "ref", "alt")]
    names = variants["id"].where(variants["id"] != ".", columns[0].str.cat(columns[1:], sep=":"))
    return names.to_numpy(object), ~names.duplicated().to_numpy()


def fill_of(counts: np.ndarray) -> np.ndarray:
    """Return the most frequent code of each SNP.

    Parameters
    ----------
    counts : ndarray of int64, shape (SNPs, 4)
        Training participants with code 0, 1, 2, 3; missing (3) does not count.

    Returns
    -------
    ndarray of float32, shape (SNPs,)
        The smaller code in a tie; 0 if every call is missing.
    """
    return counts[:, :3].argmax(axis=1).astype(np.float32)


def write_ledger(
    dataset: Path,
    oriented: Oriented,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    fill: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Write the fate of every autosomal variant; for kept variants also frequency and missing calls in training.

    Parameters
    ----------
    rows : (picked, elsewhere, kept)
        Rows of the variant table.
    """
    picked, elsewhere, kept = rows
    table = oriented.genotypes.variants.assign(fate="not_picked", fill="", frequency="", missing="")
    known = counts[:, :3].sum(axis=1)
    fate = np.full(len(table), "not_picked", dtype=object)
    fate[picked], fate[elsewhere] = "duplicate_id", "listed_elsewhere"
    fate[kept] = np.where(known == 0, "kept_all_missing", "kept")
    frequency = (counts[:, 1] + 2 * counts[:, 2]) / np.maximum(1, 2 * known)
    for name, values in (
        ("fill", fill.astype(int).astype(str)),
        ("frequency", [f"{value:.6g}" for value in frequency]),
        ("missing", counts[:, 3].astype(str)),
    ):
        column = np.full(len(table), "", dtype=object)
        column[kept] = values
        table[name] = column
    table["fate"] = fate
    table = pd.concat([table, oriented.excluded.assign(fill="", frequency="", missing="")], ignore_index=True)
    columns = ["chromosome", "position", "id", "ref", "alt", "swapped", "fate", "fill", "frequency", "missing"]
    table["swapped"] = table["swapped"].astype(int)
    for name in ("id", "ref", "alt"):
        table[name] = table[name].astype(str).map(plain_cell)
    with command.ledger(dataset, "snps_variants", LEDGER_COLUMNS) as file:
        table[columns].to_csv(file, sep="\t", header=False, index=False, lineterminator="\n")
