"""The source files of an image command, and their names in reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mrmfast.errors import UserError
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
        Metadata from the file name or the participant table (``eye``, ``slide``).
    alias : str
        Replaces the path in all output if paths may contain ids.
    """

    number: int
    file: str
    participant: str
    metadata: dict[str, Any]
    alias: str = ""

    @property
    def shown(self) -> str:
        """Name of the file in reports."""
        return self.alias or self.file


def find_files(
    root: Path, suffixes: tuple[str, ...], is_mask: Callable[[PurePosixPath], bool]
) -> tuple[list[str], int]:
    """List the files below a folder by suffix, sorted by their path relative to it.

    Parameters
    ----------
    root : Path
    suffixes : tuple of str
        Lower case, with the dot; matched without regard to case. Files whose names begin with a dot are skipped.
    is_mask : callable
        Whether a relative path is a mask; masks are skipped.

    Returns
    -------
    list of str
        Relative paths with forward slashes.
    int
        Number of skipped masks.

    Raises
    ------
    UserError
        `root` does not exist, is not a folder, or holds no such file.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; SRC is the folder with the image files")
    paths = [path for path in _walk(root) if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    files = sorted(str(path) for path in paths if not is_mask(path))
    masks = len(paths) - len(files)
    if not files:
        raise UserError(
            f"{root}: no image files ({', '.join(suffix[1:] for suffix in suffixes)}) in it"
            + (f"; {masks} masks were skipped" if masks else "; is SRC the right folder?")
        )
    return files, masks


def _walk(root: Path) -> list[PurePosixPath]:
    """Return every file below a folder, as a path relative to it."""
    return [
        PurePosixPath(Path(folder, name).relative_to(root).as_posix())
        for folder, _, names in os.walk(root)
        for name in names
    ]


def pseudonymised(sources: list[SourceFile], pseudonyms: Pseudonyms) -> list[SourceFile]:
    """Replace ids by pseudonyms and file names by numbers; without a key, return the sources unchanged.

    Ids inside other metadata are replaced too. A slide's name is always replaced, because it identifies the patient.
    """
    if not pseudonyms.key:
        return sources
    names = pseudonyms.of(source.participant for source in sources).tolist()
    return [_hidden(source, name, pseudonyms) for source, name in zip(sources, names, strict=True)]


def _hidden(source: SourceFile, pseudonym: str, pseudonyms: Pseudonyms) -> SourceFile:
    secret = [
        key
        for key, value in source.metadata.items()
        if key == "slide" or (source.participant in str(value) and value not in EYES.values())
    ]
    hidden = dict(zip(secret, pseudonyms.of(source.metadata[key] for key in secret).tolist(), strict=True))
    return replace(source, participant=pseudonym, metadata=source.metadata | hidden, alias=f"file {source.number + 1}")
