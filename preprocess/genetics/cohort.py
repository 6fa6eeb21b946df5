"""Who is in: joining by id, withdrawals, the keep list and the training split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mrmfast.errors import UserError
from mrmfast.formats.manifest import SplitRule


def is_withdrawn(participant: str) -> bool:
    """Whether an id marks a withdrawn participant.

    UK Biobank keeps the row of a withdrawn participant and makes the id negative or blank;
    PLINK writes a blank id as ``0``.
    """
    return participant in ("", "0") or participant.startswith("-")


def read_keep(path: str | Path) -> set[str]:
    """Read a list of participants to keep: one id a line, or PLINK's ``FID IID``; lines with ``#`` are comments.

    Raises
    ------
    UserError
        The file is absent, or lists nobody.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the --keep list ({type(error).__name__}); give a text file") from error
    fields = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if not fields:
        raise UserError(f"{path}: the --keep list is empty; write one participant id a line, or leave --keep out")
    return {parts[1] if len(parts) > 1 else parts[0] for parts in fields}


def select(ids: list[str], keep: str | Path | None, where: str | Path) -> tuple[np.ndarray, dict[str, int]]:
    """Choose the rows of a file that belong to participants.

    Parameters
    ----------
    ids : list of str
        Participant id of every row of `where`.
    keep : path, optional
        List of participants to keep; all by default.
    where : path
        The file, for messages.

    Returns
    -------
    ndarray of int64, shape (participants,)
        Rows, in file order.
    dict
        ``rows``, ``withdrawn``, ``not_in_keep_list``, ``keep_ids_absent``, ``participants``.

    Raises
    ------
    UserError
        An id repeats, or nobody is left.
    """
    rows = [row for row, participant in enumerate(ids) if not is_withdrawn(participant)]
    first_row: dict[str, int] = {}
    for row in rows:
        if ids[row] in first_row:
            # The id itself stays out of messages: they end up in logs.
            raise UserError(
                f"{where}: samples {first_row[ids[row]] + 1} and {row + 1} have the same id; make ids unique"
            )
        first_row[ids[row]] = row
    counts = {"rows": len(ids), "withdrawn": len(ids) - len(rows), "not_in_keep_list": 0, "keep_ids_absent": 0}
    if keep is not None:
        listed = read_keep(keep)
        kept = [row for row in rows if ids[row] in listed]
        if not kept:
            raise UserError(f"{keep}: none of the {len(listed)} ids is in {where}; give ids as they are written there")
        counts["not_in_keep_list"] = len(rows) - len(kept)
        counts["keep_ids_absent"] = len(listed) - len(kept)
        rows = kept
    if not rows:
        raise UserError(f"{where}: no participants are left (all ids are negative or blank); use the file with ids")
    counts["participants"] = len(rows)
    return np.array(rows, dtype=np.int64), counts


def everyone(ids: Iterable[str]) -> set[str]:
    """Return all who have not withdrawn."""
    return {participant for participant in ids if not is_withdrawn(participant)}


def locate(participants: Iterable[str], ids: list[str], first: set[str], where: str | Path) -> np.ndarray:
    """Find participants in a further file of the same cohort: by id, for its rows may stand in another order.

    Parameters
    ----------
    participants : iterable of str
    ids : list of str
        Of every row of the file.
    first : set of str
        Who is in the first file and has not withdrawn.
    where : path
        The file, for messages.

    Returns
    -------
    ndarray of int64, shape (participants,)
        The row of each.

    Raises
    ------
    UserError
        An id repeats, or the file holds other people.
    """
    row_of = {participant: row for row, participant in enumerate(ids) if not is_withdrawn(participant)}
    if len(row_of) != sum(not is_withdrawn(participant) for participant in ids):
        raise UserError(f"{where}: ids repeat; make ids unique")
    if row_of.keys() != first:
        raise UserError(
            f"{where}: lacks {len(first - row_of.keys())} participants of the first file and has "
            f"{len(row_of.keys() - first)} others; all files must hold the same participants"
        )
    return np.array([row_of[participant] for participant in participants], dtype=np.int64)


def training_rows(participants: Iterable[str], rule: SplitRule, where: str | Path, least: int = 1) -> np.ndarray:
    """Return which participants are training data; every statistic is fitted on them alone.

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
            f"{where}: {int(train.sum())} of {len(train)} participants fall in the training split and {least} are "
            "needed to fit statistics; use --test-fraction 0 for a tiny cohort, or another --split-seed"
        )
    return train
