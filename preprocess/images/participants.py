"""The participant of an image file, from a pattern of the file name or from a table."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mrmfast.errors import UserError
from preprocess.images.sources import EYES, SourceFile


@dataclass(frozen=True)
class ParticipantRule:
    """The rule that finds the participant of a file.

    Attributes
    ----------
    pattern : str
        Regular expression matched at the start of the file name, with a group ``participant`` and optional further
        groups. A file whose name does not match is a separate participant.
    table : Path or None
        CSV with the columns file, participant and, optionally, eye; replaces the pattern.
    """

    pattern: str
    table: Path | None = None

    def apply(self, files: list[str]) -> tuple[list[SourceFile], int]:
        """Find the participant of every file.

        Returns
        -------
        list of SourceFile
            In the order of `files`.
        int
            Number of files that did not match and are separate participants.

        Raises
        ------
        UserError
            The pattern is not a regular expression or lacks the group; the table is invalid or lacks files.
        """
        if self.table:
            return _from_table(self.table, files), 0
        pattern = _compile(self.pattern)
        sources = [_from_name(pattern, number, file) for number, file in enumerate(files)]
        return [source for source, _ in sources], sum(not matched for _, matched in sources)


def _compile(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"--participant-pattern: not a regular expression ({error})") from error
    if "participant" not in pattern.groupindex:
        raise UserError("--participant-pattern: needs a group (?P<participant>...)")
    return pattern


def _from_name(pattern: re.Pattern[str], number: int, file: str) -> tuple[SourceFile, bool]:
    """Return a file with its participant, and whether its name matched the pattern."""
    path = PurePosixPath(file)
    match = pattern.match(path.name)
    groups = {group: text for group, text in match.groupdict().items() if text} if match else {}
    matched = "participant" in groups
    participant = groups.pop("participant", path.stem)
    if "eye" in groups:
        groups["eye"] = EYES.get(groups["eye"].lower(), groups["eye"])
    return SourceFile(number, file, participant, groups), matched


def _from_table(table: Path, files: list[str]) -> list[SourceFile]:
    rows = _read_table(table)
    sources = []
    for number, file in enumerate(files):
        row = rows.get(file) or rows.get(PurePosixPath(file).name)
        if row:
            eye = EYES.get(_eye(row), "")
            sources.append(SourceFile(number, file, row["participant"].strip(), {"eye": eye} if eye else {}))
    if len(sources) < len(files):
        raise UserError(
            f"{table}: has no line for {len(files) - len(sources)} of the {len(files)} image files; "
            "add the lines (file = path below SRC, or the bare name) or move these files away"
        )
    return sources


def _read_table(table: Path) -> dict[str, dict[str, str]]:
    """Return the rows of a participant table by file."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: unreadable participant table ({type(error).__name__})") from error
    if not rows or not {"file", "participant"} <= rows[0].keys():
        raise UserError(f"{table}: needs a header with the columns file,participant (and, optionally, eye)")
    by_file: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows, start=2):
        eye = _eye(row)
        if not (row["file"] and row["participant"]) or (eye and eye not in EYES):
            raise UserError(f"{table}: line {line} lacks a file or participant, or its eye is not left or right")
        if by_file.setdefault(row["file"], row) is not row:
            raise UserError(f"{table}: line {line} repeats a file of an earlier line; remove one of the lines")
    return by_file


def _eye(row: dict[str, str]) -> str:
    return (row.get("eye") or "").strip().lower()
