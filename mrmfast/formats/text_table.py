"""Text tables with a header: labels, participants. The delimiter is the one that fits the header."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mrmfast.errors import UserError

# Tried in this order; the first with which the header holds most of the columns asked for is the file's.
DELIMITERS = ("\t", ",", ";", "|", " ")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class TextTable:
    """A table.

    Attributes
    ----------
    where : str
        Names the file in errors.
    header : list of str
        Empty if the file is.
    rows : list of (int, list of str)
        Line number and stripped cells of each row that is not empty; as many cells as the header has.
    """

    where: str
    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_table(path: Path, where: str, fitness: Callable[[list[str]], int]) -> TextTable:
    """Read a table.

    Parameters
    ----------
    path : Path
        Text in UTF-8, with or without a byte order mark, or in UTF-16 with one; quotes as in CSV.
    where : str
        Names the file in errors.
    fitness : callable
        How many of the columns asked for a header holds: the delimiter with most is the file's.

    Raises
    ------
    UserError
        The file cannot be read, is not such text, or has a row with more or fewer cells than the header.
    """
    text = _text(path, where)
    first = next((line for line in text.splitlines() if line.strip()), None)
    if first is None:
        return TextTable(where, [], [])
    try:
        headers = {delimiter: _cells(first, delimiter)[0][1] for delimiter in DELIMITERS}
        most = max(map(fitness, headers.values()))
        # Where no delimiter gives a column asked for, an error shows the header in most columns.
        delimiter = max(headers, key=lambda name: (fitness(headers[name]), 0 if most else len(headers[name])))
        (_, header), *rows = _cells(text, delimiter)
    except csv.Error as error:
        raise UserError(f"{where}: is not a table ({error}); give a text file with a header") from error
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(f"{where}, line {number}: has {len(row)} cells, the header {len(header)}; correct the line")
    return TextTable(where, header, rows)


def _text(path: Path, where: str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({type(error).__name__}); give a text file with a header") from error
    encoding = "utf-16" if data.startswith(UTF16_MARKS) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}, line {line}: is not text in UTF-8; convert the file (iconv -f latin1 -t utf-8), or save it as "
            "CSV UTF-8"
        ) from error


def _cells(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Return line number and stripped cells of each line that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]


def plain_cell(text: str) -> str:
    """Return a cell that no spreadsheet runs as a formula: ``'`` precedes what begins like one and is no number."""
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
