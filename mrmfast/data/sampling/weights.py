"""Weights of images for sampling, from a CSV file."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from mrmfast.errors import UserError
from mrmfast.formats.sample_table import SampleTable


def read_weights(path: str | Path, table: SampleTable, selected: np.ndarray) -> np.ndarray:
    """Read how often to draw each image.

    Parameters
    ----------
    path : path
        CSV with a header and two columns: ``key,weight`` gives a weight to each image, ``participant,weight`` to each
        image of a participant. Others than the selected may be in it or not.
    table : SampleTable
    selected : ndarray of bool, shape (len(table),)

    Returns
    -------
    ndarray of float64, shape (len(table),)
        As in the file, finite and not negative; zero for images not selected.

    Raises
    ------
    UserError
        No such file, another header, a line that is not a name and a weight, a name twice, a selected image without a
        weight, or nothing but zeros. Names lines, never ids.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"data.weights={path}: cannot be read ({type(error).__name__}); give a CSV file") from error
    column = lines[0][0].strip() if lines and lines[0] else ""
    if column not in ("key", "participant") or [cell.strip() for cell in lines[0][1:]] != ["weight"]:
        raise UserError(f"{path}, line 1: the header must be key,weight or participant,weight")
    known: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        weight = _weight(line[1]) if len(line) == 2 else None
        if weight is None:
            raise UserError(f"{path}, line {number}: not a {column} and a finite weight of at least 0; fix the line")
        if line[0].strip() in known:
            raise UserError(f"{path}, line {number}: a {column} given before; leave one of the lines")
        known[line[0].strip()] = weight
    weights = np.zeros(len(table))
    rows = np.flatnonzero(selected)
    found = [known.get(str(name)) for name in getattr(table, column)[rows]]
    if missing := sum(weight is None for weight in found):
        raise UserError(f"{path}: {missing} of {len(rows)} selected images have no weight; add them, with 0 if need be")
    weights[rows] = found
    if not weights.any():
        raise UserError(f"{path}: all selected images have weight 0; give one of them a positive weight")
    return weights


def _weight(text: str) -> float | None:
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if math.isfinite(weight) and weight >= 0 else None
