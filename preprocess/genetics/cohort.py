"""Participants of a dataset: joined by id, without withdrawn ones, filtered by the keep list, split for training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mrmfast.errors import UserError
from mrmfast.formats.manifest import SplitRule
from preprocess.genetics.text import read_rows


def is_withdrawn(participant: str) -> bool:
    """Whether an id marks a withdrawn participant.

    UK Biobank keeps the row of a withdrawn participant with a negative or blank id. PLINK writes a blank id as ``0``.
    """
    return participant in ("", "0") or participant.startswith("-")


def read_keep(path: str | Path) -> set[str]:
    """Read a list of participants to keep, as plink2 reads it.

    A header (``#IID``, ``#FID IID``, with or without ``#``) names the column of ids. Without a header, the first two
    columns are FID and IID, and a single column is the IID. Further columns and other lines with ``#`` are ignored.

    Raises
    ------
    UserError
        The file is absent, is not text, lists no participant, or a line lacks the column of ids.
    """
    path = Path(path)
    column: int | None = None
    ids: set[str] = set()
    for number, line in read_rows(path, "give a --keep list, one participant ID per line"):
        fields = line.split()
        names = [name.lstrip("#").upper() for name in fields]
        if column is None and not ids and names[0] in ("FID", "IID"):
            if "IID" not in names:
                raise UserError(f"{path}: line {number} names no column IID; begin the --keep list with #IID")
            column = names.index("IID")
        elif not line.startswith("#"):
            index = min(1, len(fields) - 1) if column is None else column
            if index >= len(fields):
                raise UserError(f"{path}: line {number} has no column {index + 1} (IID); correct the --keep list")
            ids.add(fields[index])
    if not ids:
        raise UserError(f"{path}: the --keep list is empty; write one participant ID per line, or remove --keep")
    return ids


def select(ids: list[str], keep: str | Path | None, path: str | Path) -> tuple[np.ndarray, dict[str, int]]:
    """Choose the rows of a file that belong to participants.

    Parameters
    ----------
    ids : list of str
        Participant id of every row of `path`.
    keep : path, optional
        List of participants to keep; all by default.
    path : path
        The file, for error messages.

    Returns
    -------
    ndarray of int64, shape (participants,)
        Rows, in file order.
    dict
        ``rows``, ``withdrawn``, ``not_in_keep_list``, ``keep_ids_absent``, ``participants``.

    Raises
    ------
    UserError
        Two rows have the same id, or no participant remains.
    """
    rows = [row for row, participant in enumerate(ids) if not is_withdrawn(participant)]
    first_row: dict[str, int] = {}
    for row in rows:
        if ids[row] in first_row:
            # Messages never contain ids: messages end up in logs.
            raise UserError(
                f"{path}: samples {first_row[ids[row]] + 1} and {row + 1} have the same ID; make IDs unique"
            )
        first_row[ids[row]] = row
    counts = {"rows": len(ids), "withdrawn": len(ids) - len(rows), "not_in_keep_list": 0, "keep_ids_absent": 0}
    if keep is not None:
        listed = read_keep(keep)
        kept = [row for row in rows if ids[row] in listed]
        if not kept:
            raise UserError(f"{keep}: none of the {len(listed)} IDs is in {path}; give IDs as written there")
        counts["not_in_keep_list"] = len(rows) - len(kept)
        counts["keep_ids_absent"] = len(listed) - len(kept)
        rows = kept
    if not rows:
        raise UserError(f"{path}: no participants remain (all IDs are negative or blank); use the file with IDs")
    counts["participants"] = len(rows)
    return np.array(rows, dtype=np.int64), counts


def everyone(ids: Iterable[str]) -> set[str]:
    """Return all participants that have not withdrawn."""
    return {participant for participant in ids if not is_withdrawn(participant)}


def locate(participants: Iterable[str], ids: list[str], first: set[str], path: str | Path) -> np.ndarray:
    """Find participants by id in another file of the same cohort; the order of the rows may differ.

    Parameters
    ----------
    participants : iterable of str
    ids : list of str
        Participant id of every row of the file.
    first : set of str
        Participants of the first file without the withdrawn ones.
    path : path
        The file, for error messages.

    Returns
    -------
    ndarray of int64, shape (participants,)
        The row of each participant.

    Raises
    ------
    UserError
        Two rows have the same id, or the file has other participants.
    """
    row_of = {participant: row for row, participant in enumerate(ids) if not is_withdrawn(participant)}
    if len(row_of) != sum(not is_withdrawn(participant) for participant in ids):
        raise UserError(f"{path}: has duplicate IDs; make IDs unique")
    if row_of.keys() != first:
        raise UserError(
            f"{path}: lacks {len(first - row_of.keys())} participants of the first file and has "
            f"{len(row_of.keys() - first)} others; all files must hold the same participants"
        )
    return np.array([row_of[participant] for participant in participants], dtype=np.int64)


def training_rows(participants: Iterable[str], rule: SplitRule, path: str | Path, least: int = 1) -> np.ndarray:
    """Return which participants are in the training split; every statistic is fitted on these participants alone.

    Returns
    -------
    ndarray of bool, shape (participants,)

    Raises
    ------
    UserError
        Fewer than `least` participants are in the training split.
    """
    train = rule.training(map(str, participants))
    if train.sum() < least:
        raise UserError(
            f"{path}: {int(train.sum())} of {len(train)} participants are in the training split, at least {least} are "
            "required to fit statistics; use --test-fraction 0 for a small cohort, or another --split-seed"
        )
    return train
