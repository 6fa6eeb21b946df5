"""The list of variants to keep (``--variants``)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from preprocess.genetics.genotypes import autosome
from preprocess.genetics.text import read_rows

# rsIDs agree between builds, positions do not: a larger share of differing positions means another build.
MOST_ELSEWHERE = 0.5

Position = tuple[int, int]  # chromosome, position on it


class Columns(NamedTuple):
    """Columns of a list of variants."""

    id: int
    chromosome: int | None = None
    position: int | None = None


# Names of the columns of id, chromosome and position, in upper case.
NAMES = (("ID", "SNP", "RSID", "VARIANT"), ("CHROM", "CHR", "CHROMOSOME"), ("POS", "BP", "POSITION"))
# Number of columns -> columns of a list without header: ids; id, chromosome, position; a .bim.
WITHOUT_HEADER = {1: Columns(0), 3: Columns(0, 1, 2), 6: Columns(1, 0, 3)}


def read_list(path: Path, variants: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, int]:
    """Find the listed variants.

    Parameters
    ----------
    path : Path
        One id per line; or id, chromosome and position; or a table whose header names ``ID`` (a .pvar) or ``SNP``; or
        a .bim. Other lines with ``#`` are comments.
    variants : DataFrame
        With ``id``, ``chromosome``, ``position``.

    Returns
    -------
    ndarray of int64, shape (selected,)
        Rows of `variants`, ascending: the order of the genotypes, not of the list. If several variants have a listed
        id, all of them are selected.
    ndarray of int64, shape (elsewhere,)
        Excluded rows: the id is listed with another position.
    int
        Number of listed ids without a variant.

    Raises
    ------
    UserError
        The list is absent, malformed or empty, gives two positions for an id, has no id of the genotypes, or has
        positions of another build.
    """
    positions = _read_positions(path)
    rows = np.flatnonzero(variants["id"].isin(positions.keys()).to_numpy())
    if not len(rows):
        raise UserError(
            f"--variants {path}: none of its {len(positions)} IDs is in the genotypes; use one kind of ID in both"
        )
    listed = variants.iloc[rows]
    expected = [positions[name] for name in listed["id"]]
    actual = zip(listed["chromosome"], listed["position"], strict=True)
    elsewhere = np.array([e is not None and e != a for e, a in zip(expected, actual, strict=True)], dtype=bool)
    given = sum(position is not None for position in expected)
    if elsewhere.sum() > MOST_ELSEWHERE * given:
        raise UserError(
            f"--variants {path}: {elsewhere.sum()} of {given} variants have another position in the genotypes: the "
            "list is of another build; lift it over to the build of the genotypes, or list IDs without positions"
        )
    return rows[~elsewhere], rows[elsewhere], len(positions) - int(listed["id"].nunique())


def _read_positions(path: Path) -> dict[str, Position | None]:
    """Read the listed ids, each with its position or None."""
    positions: dict[str, Position | None] = {}
    columns: Columns | None = None
    for number, line in read_rows(path, "give a --variants list of IDs"):
        fields = line.split()
        if not positions and columns is None and (columns := _header(fields)):
            continue
        if line.startswith("#"):
            continue
        try:
            name, position = _entry(fields, columns or WITHOUT_HEADER.get(len(fields)))
        except (IndexError, ValueError):
            raise UserError(
                f"--variants {path}: line {number}: give an ID, or an ID, a chromosome and a position, or a .bim"
            ) from None
        before = positions.setdefault(name, position)
        if before is not None and position is not None and before != position:
            raise UserError(
                f"--variants {path}: line {number}: an earlier line gives another position for this ID; remove one of "
                "the lines"
            )
        positions[name] = before or position
    if not positions:
        raise UserError(f"--variants {path}: is empty; write one variant ID per line")
    return positions


def _header(fields: list[str]) -> Columns | None:
    """Return the columns that a header names, e.g. of a .pvar; None if the line is no header."""
    names = [field.lstrip("#").upper() for field in fields]
    indices = [next((names.index(name) for name in known if name in names), None) for known in NAMES]
    if indices[0] is None or any(name.isdigit() for name in names):
        return None
    return Columns(indices[0], *(indices[1:] if None not in indices else (None, None)))


def _entry(fields: list[str], columns: Columns | None) -> tuple[str, Position | None]:
    """Return the id of a line and its position, if given.

    Raises
    ------
    IndexError, ValueError
        A column is absent, or the position is not an integer.
    """
    if columns is None:
        raise ValueError
    if columns.chromosome is None or columns.position is None:
        return fields[columns.id], None
    return fields[columns.id], (autosome(fields[columns.chromosome]), int(fields[columns.position]))
