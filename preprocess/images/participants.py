"""The participant of an image file: from a table, from a pattern of its path, or from recognised layouts of paths."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mrmfast.errors import UserError
from preprocess.images.folder_kinds import folded
from preprocess.images.layouts import OWN, identify
from preprocess.images.participant_table import read_participants
from preprocess.images.path_reading import eye_of
from preprocess.images.sources import SourceFile

PATTERN, TABLE = "--participant-pattern", "--participant-table"


@dataclass(frozen=True)
class Participants:
    """The participants of all files.

    Attributes
    ----------
    sources : list of SourceFile
        In the order of the files.
    layouts : dict of str to int
        How participants were identified -> number of files.
    unused_rows : int
        Rows of the table that name no file.
    """

    sources: list[SourceFile]
    layouts: dict[str, int]
    unused_rows: int = 0


@dataclass(frozen=True)
class ParticipantRule:
    """The rule that finds the participant of a file.

    Attributes
    ----------
    pattern : str, optional
        Regular expression that is searched in the path below the source folder, with a group ``participant`` and
        optional groups ``eye``, ``visit`` and others. By default, layouts are recognised (:mod:`.layouts`).
    table : Path, optional
        Table of files and participants (:mod:`.participant_table`); replaces pattern and layouts.
    """

    pattern: str | None = None
    table: Path | None = None

    def apply(self, files: list[str]) -> Participants:
        """Find the participant of every file.

        Parameters
        ----------
        files : list of str
            Sorted paths relative to the source folder.

        Raises
        ------
        UserError
            The table is invalid, the pattern is invalid or ambiguous, or the paths do not identify people.
        """
        if self.table:
            rows, unused = read_participants(self.table, files)
            sources = [
                SourceFile(number, file, row.participant, row.metadata, labels=row.labels)
                for number, (file, row) in enumerate(zip(files, rows, strict=True))
            ]
            return Participants(sources, {TABLE: len(files)}, unused)
        if self.pattern is not None:
            return _by_pattern(compile_pattern(self.pattern), files)
        identities = identify(files)
        sources = [
            SourceFile(number, identity.file, identity.participant, identity.metadata)
            for number, identity in enumerate(identities)
        ]
        return Participants(sources, dict(Counter(identity.layout for identity in identities)))


def compile_pattern(text: str) -> re.Pattern[str]:
    """Compile a participant pattern; case does not matter.

    Raises
    ------
    UserError
        It is no regular expression, or lacks the group.
    """
    try:
        pattern = re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"{PATTERN}: not a regular expression ({error})") from error
    if "participant" not in pattern.groupindex:
        raise UserError(f"{PATTERN}: needs a group (?P<participant>...)")
    return pattern


def _by_pattern(pattern: re.Pattern[str], files: list[str]) -> Participants:
    paths = [unicodedata.normalize("NFC", file) for file in files]
    groups = [_groups(pattern, path) for path in paths]
    unmatched = [number for number, known in enumerate(groups) if "participant" not in known]
    stems = [PurePosixPath(paths[number]).stem for number in unmatched]
    people = {folded(known["participant"]) for known in groups if "participant" in known}
    if len(set(map(folded, stems))) < len(stems) or not people.isdisjoint(map(folded, stems)):
        raise UserError(
            f"{PATTERN}: {len(unmatched)} of {len(files)} image files do not match, and some of their names stand in "
            "several folders or are the participants of others; extend the pattern, or use --participant-table"
        )
    for number, stem in zip(unmatched, stems, strict=True):
        groups[number]["participant"] = stem
    sources = [
        SourceFile(number, file, known.pop("participant"), known)
        for number, (file, known) in enumerate(zip(files, groups, strict=True))
    ]
    layouts = {PATTERN: len(files) - len(unmatched), OWN: len(unmatched)}
    return Participants(sources, {layout: count for layout, count in layouts.items() if count})


def _groups(pattern: re.Pattern[str], path: str) -> dict[str, str]:
    """Return the groups of a path; empty if it does not match.

    A pattern without a slash may be meant for a folder or for the file: if it fits both, their participants must agree.
    """
    match = pattern.search(path)
    if match is None:
        return {}
    if "/" not in pattern.pattern:
        starts = [0, *(slash.end() for slash in re.finditer("/", path))]
        matches = [fit for start in starts if (fit := pattern.match(path, start))]
        if len({fit["participant"] for fit in matches}) > 1:
            raise UserError(
                f"{PATTERN}: fits a folder and a file of one path with different participants; begin it with ^ for "
                "the first folder, end it with / for a folder, or write [^/]*$ at its end for the file"
            )
        match = matches[0] if matches else match
    groups = {group: text for group, text in match.groupdict().items() if text}
    if "eye" in groups:
        groups["eye"] = eye_of(groups["eye"]) or groups["eye"]
    return groups
