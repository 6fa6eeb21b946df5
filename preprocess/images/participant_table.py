"""Tables that name the participant of each image file: any delimiter, columns by the names in the header."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mrmfast.errors import UserError
from mrmfast.formats.labels import MISSING
from mrmfast.formats.text_table import TextTable, read_table
from preprocess.images.path_reading import eye_of

# Column -> names of its header, compared without case, spaces and signs; the first name goes before the others.
COLUMNS = {
    column: tuple(names.split())
    for column, names in {
        "file": "file filename filepath path relativepath image imagepath imagefile imagename imageid img idcode",
        "participant": "participant participantid patient patientid subject subjectid eid iid person personid pid",
        "eye": "eye laterality side eyeside",
        "visit": "visit instance session timepoint visitid",
    }.items()
}


@dataclass(frozen=True)
class Row:
    """A row: the participant, eye and visit where known, and the other columns."""

    participant: str
    metadata: dict[str, str]
    labels: dict[str, str]


def read_participants(path: Path, files: list[str]) -> tuple[list[Row], int]:
    """Find the row of every file.

    A row names a file by its path below the source folder, or by its name if only one file has it; the suffix may be
    absent.

    Parameters
    ----------
    path : Path
    files : list of str
        Paths relative to the source folder.

    Returns
    -------
    list of Row
        In the order of `files`.
    int
        Number of rows without a file.

    Raises
    ------
    UserError
        The table is not readable, lacks a column, names a file twice or by a name of several files, or lacks files.
    """
    table = read_table(path, f"--participant-table {path}", lambda header: len(_positions(header)))
    positions = _positions(table.header)
    for column in ("file", "participant"):
        if column not in positions:
            raise UserError(
                f"{table.where}: has no column {column!r} (or {', '.join(COLUMNS[column][1:6])}); name it in the header"
            )
    plain = set(map(_plain, table.header))
    synonyms = [name for name in COLUMNS["participant"] if name in plain]
    if len(synonyms) > 1 and synonyms[0] not in COLUMNS["participant"][:2]:
        raise UserError(
            f"{table.where}: {synonyms[0]!r} and {synonyms[1]!r} may both name people; call one participant"
        )
    doubled = [name for name in table.header if table.header.count(name) > 1]
    if doubled:
        raise UserError(f"{table.where}: has column {doubled[0]!r} twice; rename one of them")
    rows: dict[str, Row] = {}
    unused = 0
    find = _finder(table.where, files)
    for line, cells in table.rows:
        row = _row(table, positions, line, cells)
        file = find(line, cells[positions["file"]])
        if file is None:
            unused += 1
        elif file in rows:
            raise UserError(f"{table.where}, line {line}: repeats a file of an earlier line; remove one of the lines")
        else:
            rows[file] = row
    if len(rows) < len(files):
        raise UserError(
            f"{table.where}: has no line for {len(files) - len(rows)} of the {len(files)} image files"
            + (f", and {unused} of its lines name no file below SRC" if unused else "")
            + "; add the lines (file = path below SRC) or move these files away"
        )
    return [rows[file] for file in files], unused


def _positions(header: list[str]) -> dict[str, int]:
    """Return the column of file, participant, eye and visit, where the header has it."""
    plain = list(map(_plain, header))
    return {
        column: next(plain.index(name) for name in names if name in plain)
        for column, names in COLUMNS.items()
        if not set(names).isdisjoint(plain)
    }


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _row(table: TextTable, positions: dict[str, int], line: int, cells: list[str]) -> Row:
    known = {column: cells[position] for column, position in positions.items()}
    metadata = {}
    for column in ("eye", "visit"):
        text = known.get(column, "")
        if text.casefold() not in MISSING:
            metadata[column] = eye_of(text) if column == "eye" else text
    if not known["file"] or not known["participant"]:
        raise UserError(f"{table.where}, line {line}: lacks a file or participant; add it or remove the line")
    if metadata.get("eye") == "":
        raise UserError(f"{table.where}, line {line}: the eye is not left, right, L, R, OS or OD; correct it")
    used = {positions[column] for column in known}
    labels = {
        name: cell for number, (name, cell) in enumerate(zip(table.header, cells, strict=True)) if number not in used
    }
    return Row(unicodedata.normalize("NFC", known["participant"]), metadata, labels)


def _finder(where: str, files: list[str]) -> Callable[[int, str], str | None]:
    """Return a function from line and cell to the file that the cell names; None if there is none."""
    ways: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(4)]
    for file in files:
        path = PurePosixPath(unicodedata.normalize("NFC", file))
        for way, name in zip(ways, (str(path), str(path.with_suffix("")), path.name, path.stem), strict=True):
            way[name].append(file)

    def find(line: int, cell: str) -> str | None:
        name = str(PurePosixPath(unicodedata.normalize("NFC", cell).replace("\\", "/")))
        named = next((way[name] for way in ways if name in way), [])
        if len(named) > 1:
            raise UserError(
                f"{where}, line {line}: {len(named)} files below SRC have this name; give the path below SRC"
            )
        return named[0] if named else None

    return find
