"""The source files of an image command, and their names in reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from mrmfast.formats.pseudonyms import Pseudonyms

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".bmp",
    ".webp",
)
EYES = {
    **dict.fromkeys(("left", "l", "os", "21015"), "left"),
    **dict.fromkeys(("right", "r", "od", "21016"), "right"),
}


@dataclass(frozen=True)
class SourceFile:
    """One file to process.

    Attributes
    ----------
    number : int
        Position in the sorted list of files.
    file : str
        Path relative to the source folder, with forward slashes.
    participant : str
    metadata : dict
        Metadata from the path or the participant table (``eye``, ``visit``, ``class``, ``slide``).
    alias : str
        Replaces the path in all output if paths may contain ids.
    labels : dict of str to str
        Further columns of the participant table; written to the private table of sources only.
    """

    number: int
    file: str
    participant: str
    metadata: dict[str, Any]
    alias: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Name of the file in reports."""
        return self.alias or self.file


def pseudonymised(sources: list[SourceFile], pseudonyms: Pseudonyms) -> list[SourceFile]:
    """Replace ids by pseudonyms and file names by numbers; without a key, return the sources unchanged.

    Ids inside other metadata are replaced too. Slides and visits are always replaced: a name or date of these
    identifies the patient. Labels are removed, since a table may hold other ids.
    """
    if not pseudonyms.key:
        return sources
    names = pseudonyms.of(source.participant for source in sources).tolist()
    return [_hidden(source, name, pseudonyms) for source, name in zip(sources, names, strict=True)]


def _hidden(source: SourceFile, pseudonym: str, pseudonyms: Pseudonyms) -> SourceFile:
    secret = [
        key
        for key, value in source.metadata.items()
        if key in ("slide", "visit") or (source.participant in str(value) and value not in EYES.values())
    ]
    hidden = dict(zip(secret, pseudonyms.of(source.metadata[key] for key in secret).tolist(), strict=True))
    alias = f"file {source.number + 1}"
    return replace(source, participant=pseudonym, metadata=source.metadata | hidden, alias=alias, labels={})
