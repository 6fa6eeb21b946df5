"""The list of variants to keep (``--variants``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from preprocess.genetics.genotypes import autosome

# rsIDs agree between builds, positions do not: more than this share elsewhere means another build.
MOST_ELSEWHERE = 0.5


Place = tuple[int, int]  # chromosome, position


def read_list(path: Path, variants: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, int]:
    """Find the listed variants.

    Parameters
    ----------
    path : Path
        One id a line, or id, chromosome and position; lines with ``#`` are comments.
    variants : DataFrame
        With ``id``, ``chromosome``, ``position``.

    Returns
    -------
    ndarray of int64, shape (found,)
        Rows of `variants`, ascending: the order is that of the genotypes, not of the list. A listed id that several
        variants have gives all of them.
    ndarray of int64, shape (elsewhere,)
        Rows excluded: their id is listed, but at another place.
    int
        How many listed ids no variant has.

    Raises
    ------
    UserError
        The list is absent, malformed or empty, gives an id two places, names nothing the genotypes hold, or gives
        positions in another build.
    """
    places = _read_places(path)
    rows = np.flatnonzero(variants["id"].isin(places.keys()).to_numpy())
    if not len(rows):
        raise UserError(
            f"--variants {path}: none of its {len(places)} ids is in the genotypes; are they rsIDs in both?"
        )
    listed = variants.iloc[rows]
    expected = [places[name] for name in listed["id"]]
    actual = zip(listed["chromosome"], listed["position"], strict=True)
    elsewhere = np.array(
        [place is not None and place != where for place, where in zip(expected, actual, strict=True)], dtype=bool
    )
    given = sum(place is not None for place in expected)
    if elsewhere.sum() > MOST_ELSEWHERE * given:
        raise UserError(
            f"--variants {path}: {elsewhere.sum()} of {given} variants stand elsewhere in the genotypes: the positions "
            "are of another build; lift one over, or list ids alone"
        )
    return rows[~elsewhere], rows[elsewhere], len(places) - int(listed["id"].nunique())


def _read_places(path: Path) -> dict[str, Place | None]:
    """Read the listed ids, and the place of each where the list gives one."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--variants {path}: cannot be read ({type(error).__name__}); give a text file of ids"
        ) from error
    places: dict[str, Place | None] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or line.startswith("#"):
            continue
        if len(fields) not in (1, 3) or (len(fields) == 3 and not fields[2].isdigit()):
            raise UserError(f"--variants {path}: line {number}: give an id, or an id, a chromosome and a position")
        place = (autosome(fields[1]), int(fields[2])) if len(fields) == 3 else None
        before = places.setdefault(fields[0], place)
        if before is not None and place is not None and before != place:
            raise UserError(
                f"--variants {path}: line {number}: gives an id another place than an earlier line; remove one of them"
            )
        places[fields[0]] = before or place
    if not places:
        raise UserError(f"--variants {path}: is empty; write one variant id a line")
    return places
