"""The list of variants to keep (``--variants``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from preprocess.genetics.genotypes import autosome

# rsIDs agree between builds, positions do not: a larger share of differing positions means another build.
MOST_ELSEWHERE = 0.5

Position = tuple[int, int]  # chromosome, position on it


def read_list(path: Path, variants: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, int]:
    """Find the listed variants.

    Parameters
    ----------
    path : Path
        One id per line, or id, chromosome and position; lines with ``#`` are comments.
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
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--variants {path}: cannot be read ({type(error).__name__}); give a text file of IDs"
        ) from error
    positions: dict[str, Position | None] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        if len(fields) not in (1, 3) or (len(fields) == 3 and not fields[2].isdigit()):
            raise UserError(f"--variants {path}: line {number}: give an ID, or an ID, a chromosome and a position")
        position = (autosome(fields[1]), int(fields[2])) if len(fields) == 3 else None
        before = positions.setdefault(fields[0], position)
        if before is not None and position is not None and before != position:
            raise UserError(
                f"--variants {path}: line {number}: an earlier line gives another position for this ID; remove one of "
                "the lines"
            )
        positions[fields[0]] = before or position
    if not positions:
        raise UserError(f"--variants {path}: is empty; write one variant ID per line")
    return positions
