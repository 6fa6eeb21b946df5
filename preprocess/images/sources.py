"""The source files of an image preprocessor: which they are, and whose."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mrmfast.errors import UserError
from mrmfast.formats.pseudonyms import Pseudonyms

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_EYES = {
    **dict.fromkeys(("left", "l", "os", "21015"), "left"),
    **dict.fromkeys(("right", "r", "od", "21016"), "right"),
}


@dataclass(frozen=True)
class Source:
    """One file to process.

    Attributes
    ----------
    number : int
        Position in the sorted list of files.
    file : str
        Path relative to the source folder, with forward slashes.
    participant : str
    metadata : dict
        What the name or the participant table says (``eye``, ``slide``).
    alias : str
        What stands for the path in all that is written, where paths hold ids that must not be.
    """

    number: int
    file: str
    participant: str
    metadata: dict[str, Any]
    alias: str = ""

    @property
    def shown(self) -> str:
        """What reports call the file."""
        return self.alias or self.file


def pseudonymised(sources: list[Source], pseudonyms: Pseudonyms) -> list[Source]:
    """Replace ids, also where they are part of a slide's or another name, and number the files; without a key nothing.

    A slide's name is replaced whether or not it holds the id: it leads to the patient like one.
    """
    if not pseudonyms.key:
        return sources

    def hide(source: Source, participant: str) -> Source:
        secret = [
            key
            for key, value in source.metadata.items()
            if key == "slide" or (source.participant in str(value) and value not in _EYES.values())
        ]
        hidden = dict(zip(secret, pseudonyms.of(source.metadata[key] for key in secret).tolist(), strict=True))
        return replace(
            source,
            participant=participant,
            metadata=source.metadata | hidden,
            alias=f"file {source.number + 1}",
        )

    names = pseudonyms.of(source.participant for source in sources).tolist()
    return [hide(source, name) for source, name in zip(sources, names, strict=True)]


@dataclass(frozen=True)
class Naming:
    """How a file name tells the participant.

    Attributes
    ----------
    pattern : str
        Regular expression searched from the start of the file name, with a group ``participant`` and optional further
        groups. A name that does not match is its own participant.
    table : Path or None
        CSV with the columns file, participant and, if wanted, eye; overrides the pattern.
    """

    pattern: str
    table: Path | None = None

    def sources(self, files: list[str]) -> tuple[list[Source], int]:
        """Name the participant of every file.

        Returns
        -------
        list of Source
            In the order of `files`.
        int
            How many files did not match and are their own participant.

        Raises
        ------
        UserError
            The pattern is no regular expression or lacks the group; the table is unusable or lacks files.
        """
        return _from_table(self.table, files) if self.table else self._from_pattern(files)

    def _from_pattern(self, files: list[str]) -> tuple[list[Source], int]:
        try:
            pattern = re.compile(self.pattern, re.IGNORECASE)
        except re.error as error:
            raise UserError(f"--participant-pattern: not a regular expression ({error})") from error
        if "participant" not in pattern.groupindex:
            raise UserError("--participant-pattern: needs a group (?P<participant>...)")
        sources, unmatched = [], 0
        for number, file in enumerate(files):
            name = PurePosixPath(file)
            found = pattern.match(name.name)
            groups = {k: v for k, v in found.groupdict().items() if v} if found else {}
            unmatched += "participant" not in groups
            participant = groups.pop("participant", name.stem)
            if "eye" in groups:
                groups["eye"] = _EYES.get(groups["eye"].lower(), groups["eye"])
            sources.append(Source(number, file, participant, groups))
        return sources, unmatched


def _from_table(table: Path, files: list[str]) -> tuple[list[Source], int]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: unreadable participant table ({type(error).__name__})") from error
    if not rows or not {"file", "participant"} <= rows[0].keys():
        raise UserError(f"{table}: needs a header with the columns file,participant (and, if wanted, eye)")
    known: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows, start=2):
        eye = (row.get("eye") or "").strip().lower()
        if not (row["file"] and row["participant"]) or (eye and eye not in _EYES):
            raise UserError(f"{table}: line {line} lacks a file or participant, or its eye is not left or right")
        if known.setdefault(row["file"], row) is not row:
            raise UserError(f"{table}: line {line} names a file a second time; remove one of the lines")
    sources = []
    for number, file in enumerate(files):
        entry = known.get(file) or known.get(PurePosixPath(file).name)
        if entry:
            eye = _EYES.get((entry.get("eye") or "").strip().lower(), "")
            sources.append(Source(number, file, entry["participant"].strip(), {"eye": eye} if eye else {}))
    if len(sources) < len(files):
        raise UserError(
            f"{table}: has no line for {len(files) - len(sources)} of the {len(files)} image files; "
            "add them (file = path below SRC, or the bare name) or move these files away"
        )
    return sources, 0


def find_files(
    root: Path, suffixes: tuple[str, ...], leave_out: Callable[[PurePosixPath], bool]
) -> tuple[list[str], int]:
    """List the files below a folder by suffix, sorted by their path relative to it.

    Parameters
    ----------
    root : Path
    suffixes : tuple of str
        Lower case, with the dot; matched without regard to case. Hidden files are passed over.
    leave_out : callable
        Says of a relative path whether it is something else (a mask).

    Returns
    -------
    list of str
        Relative paths with forward slashes.
    int
        How many were left out.

    Raises
    ------
    UserError
        `root` does not exist, is not a folder, or holds no such file.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; SRC is the folder with the image files")
    found: list[str] = []
    left_out = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = PurePosixPath(Path(folder, name).relative_to(root).as_posix())
            if path.suffix.lower() in suffixes and not name.startswith("."):
                if leave_out(path):
                    left_out += 1
                else:
                    found.append(str(path))
    if not found:
        raise UserError(
            f"{root}: no image files ({', '.join(s[1:] for s in suffixes)}) in it"
            + (f"; {left_out} masks were left out" if left_out else "; is SRC the right folder?")
        )
    return sorted(found), left_out
