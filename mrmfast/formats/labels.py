"""Tables of labels: a text file with a header, one row per image or participant. Documented in ``docs/formats.md``.

The table is joined with the dataset by name (:mod:`mrmfast.data.labels`), never by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mrmfast.errors import UserError
from mrmfast.formats.text_table import TextTable, read_table

TableKind = Literal["class", "multi_hot", "values"]
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "."})  # cells without a value, in any case


@dataclass(frozen=True)
class LabelTable:
    """A table of labels.

    Attributes
    ----------
    kind : {"class", "multi_hot", "values"}
    names : tuple of str
        The classes in the order of their numbers, or the columns.
    rows : dict of str to int
        Image or participant -> row of `values`.
    values : ndarray
        ``class``: int64, (n,), -1 where the cell is empty. ``multi_hot`` and ``values``: float32, (n, C), NaN where a
        cell is empty; only ``values`` may have empty cells beside filled ones.
    """

    kind: TableKind
    names: tuple[str, ...]
    rows: dict[str, int]
    values: np.ndarray

    def has_value(self) -> np.ndarray:
        """Return which rows hold any value, bool, (n,)."""
        return self.values >= 0 if self.kind == "class" else ~np.isnan(self.values).all(1)


def read_labels(
    path: str | Path,
    *,
    kind: TableKind,
    columns: Sequence[str],
    identifier: str,
    classes: Sequence[str] | None = None,
) -> LabelTable:
    r"""Read a table of labels.

    Parameters
    ----------
    path : path
        Text with a header, separated by tabs, commas, semicolons, bars or spaces; quotes as in CSV.
    kind : {"class", "multi_hot", "values"}
        One column of class names or numbers; columns of 0 and 1; or columns of numbers.
    columns : sequence of str
        Which columns to read. ``class`` takes one.
    identifier : str
        Name of the column that names the image or participant.
    classes : sequence of str, optional
        The classes in the order of their numbers. By default: 0 to the largest, where all cells are whole numbers;
        otherwise the names in the file, sorted.

    Returns
    -------
    LabelTable

    Raises
    ------
    UserError
        No such file, a missing or doubled column, a name twice, a cell that is no label, or a class that is not known.
        Names lines and columns, never ids.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
    ...     _ = file.write("id_code\tdiagnosis\na\t2\nb\t0\nc\t1\nd\t\n")
    ...     file.flush()
    ...     table = read_labels(file.name, kind="class", columns=["diagnosis"], identifier="id_code")
    >>> table.names, table.values.tolist(), table.rows["b"]
    (('0', '1', '2'), [2, 0, 1, -1], 1)
    """
    if not columns or (kind == "class" and len(columns) != 1) or len(set(columns)) != len(columns):
        need = "one column" if kind == "class" else "at least one column, each once"
        raise UserError(f"data.labels.columns={list(columns)}: kind {kind} takes {need}")
    table = _read(Path(path), identifier, columns)
    where, (rows, numbers, texts) = table.where, _rows(table, identifier, columns)
    if kind == "class":
        names, values = _classes(where, [row[0] for row in texts], numbers, columns[0], classes)
        return LabelTable(kind, names, rows, values)
    return LabelTable(kind, tuple(columns), rows, _numbers(where, kind, texts, numbers, columns))


def _read(path: Path, identifier: str, columns: Sequence[str]) -> TextTable:
    """Return the table, whose header holds each needed column once."""
    where, needed = f"data.labels.path={path}", [identifier, *columns]
    table = read_table(path, where, lambda header: sum(name in header for name in needed))
    missing = [name for name in needed if name not in table.header]
    if missing:
        shown = ", ".join(table.header[:20]) + (", ..." if len(table.header) > 20 else "")
        raise UserError(f"{where}: has no column {missing[0]!r}; its columns are: {shown or 'none, the file is empty'}")
    doubled = [name for name in needed if table.header.count(name) > 1]
    if doubled:
        raise UserError(f"{where}: has column {doubled[0]!r} twice; rename one of them")
    if not table.rows:
        raise UserError(f"{where}: holds no rows; give a table with a header and a row per image or participant")
    return table


def _rows(
    table: TextTable, identifier: str, columns: Sequence[str]
) -> tuple[dict[str, int], list[int], list[list[str]]]:
    """Return the row of each name, and per row the line number and the cells of the columns."""
    positions = [table.header.index(name) for name in columns]
    name_position, rows, numbers = table.header.index(identifier), dict[str, int](), list[int]()
    texts: list[list[str]] = []
    for number, row in table.rows:
        name = row[name_position]
        if not name:
            raise UserError(f"{table.where}, line {number}: column {identifier} is empty; name the row or remove it")
        if name in rows:
            raise UserError(
                f"{table.where}, line {number}: the same {identifier} as in line {numbers[rows[name]]}; "
                "keep one of the lines"
            )
        rows[name] = len(texts)
        numbers.append(number)
        texts.append([row[position] for position in positions])
    return rows, numbers, texts


def _classes(
    where: str, texts: list[str], numbers: list[int], column: str, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the classes and the class number of each row, -1 where there is none."""
    present = {text for text in texts if text.lower() not in MISSING}
    if not present:
        raise UserError(f"{where}: column {column!r} is empty in every row; name another with data.labels.columns")
    if classes is not None:
        names = tuple(str(name) for name in classes)
        if len(set(names)) != len(names):
            raise UserError(f"data.labels.classes={list(classes)}: names a class twice")
    elif all(text.isdecimal() for text in present):
        known = {int(text) for text in present}
        names = tuple(str(number) for number in range(max(known) + 1)) if max(known) < len(texts) + 1000 else ()
        absent = next((number for number in range(max(known)) if number not in known), None)
        if absent is not None:
            raise UserError(
                f"{where}: column {column!r} has class {max(known)}, but no row of class {absent}; if that is right, "
                "list all classes in data.labels.classes"
            )
        texts = [str(int(text)) if text.isdecimal() else text for text in texts]  # 01 is 1
    else:
        names = tuple(sorted(present))
    number_of = {name: number for number, name in enumerate(names)}
    values = np.full(len(texts), -1, dtype=np.int64)
    for row, text in enumerate(texts):
        if text.lower() in MISSING and text not in number_of:
            continue
        if text not in number_of:
            raise UserError(
                f"{where}, line {numbers[row]}: column {column!r} has a class that data.labels.classes does not list; "
                "add it, or correct the line"
            )
        values[row] = number_of[text]
    return names, values


def _numbers(
    where: str, kind: TableKind, texts: list[list[str]], numbers: list[int], columns: Sequence[str]
) -> np.ndarray:
    """Return the cells as float32, NaN where one is empty."""
    values = np.full((len(texts), len(columns)), np.nan, dtype=np.float32)
    for row, cells in enumerate(texts):
        empty = [cell.lower() in MISSING for cell in cells]
        if kind == "multi_hot" and any(empty) and not all(empty):
            raise UserError(
                f"{where}, line {numbers[row]}: column {columns[empty.index(True)]!r} is empty; write 0 or 1, "
                "or leave all label columns of the row empty"
            )
        for column, cell in enumerate(cells):
            if empty[column]:
                continue
            value = _number(cell)
            if value is None or (kind == "multi_hot" and value not in (0.0, 1.0)):
                what = "0 or 1" if kind == "multi_hot" else "a finite number"
                raise UserError(
                    f"{where}, line {numbers[row]}: column {columns[column]!r} is not {what}; correct the line"
                )
            values[row, column] = value
    return values


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # Beyond float32's range a number would become infinite.
    return value if math.isfinite(value) and abs(value) < 3.4e38 else None
