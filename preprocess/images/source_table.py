"""``reports/COMMAND.sources.tsv``: the private map from a sample's key to its source file, and its labels.

It is a table of labels by ``key`` (:mod:`mrmfast.formats.labels`): columns of a participant table and classes of
folders can be trained on.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from mrmfast.atomic import write_aside
from mrmfast.formats.text_table import plain_cell


def sources_path(dataset: Path, command: str) -> Path:
    """Return the path of the table."""
    return dataset / "reports" / f"{command}.sources.tsv"


def write_sources(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write the table: tab-separated, readable by its owner only; a cell that looks like a formula begins with ``'``.

    Parameters
    ----------
    path : Path
        From :func:`sources_path`.
    rows : iterable of dict
        ``key``, ``participant`` and ``file`` in every row; further columns where known.
    """
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with write_aside(path) as file:
        os.fchmod(file.fileno(), 0o600)  # file names and participants
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(map(plain_cell, columns))
        table.writerows([plain_cell(row.get(name, "")) for name in columns] for row in rows)
