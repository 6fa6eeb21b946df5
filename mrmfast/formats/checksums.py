"""A folder sealed with the SHA-256 of every file in it, so that one digest in the manifest vouches for all of them.

Zarr's own checksums (zstd, crc32c) cover chunks only, and only when they are read; a flipped byte in a ``zarr.json``
can change a shape or an attribute without a word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from mrmfast.atomic import write_aside
from mrmfast.errors import PARSE_ERRORS, UserError

NAME = "checksums.json"
UNLISTED = "does not belong there"
HASHING_THREADS = 4
_HEX = re.compile("[0-9a-f]{64}")


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> str:
    """Write ``checksums.json`` into a finished folder.

    Parameters
    ----------
    folder : Path
        Nothing in it changes after this.

    Returns
    -------
    str
        SHA-256 of ``checksums.json`` itself: equal digests mean equal folders.
    """
    names = _files(folder)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:  # hashlib releases the interpreter lock
        digests = dict(zip(names, pool.map(file_sha256, [folder / name for name in names]), strict=True))
    with write_aside(folder / NAME) as file:
        file.write(json.dumps(digests, indent=0) + "\n")
    return file_sha256(folder / NAME)


def parse_digests(text: bytes, where: str) -> dict[str, str]:
    """Return the content of a ``checksums.json``: file name -> SHA-256.

    Raises
    ------
    UserError
        It holds something else; `where` names the file.
    """
    try:
        digests: dict[str, str] = json.loads(text)
        if not all(_HEX.fullmatch(digest) for digest in digests.values()):
            raise ValueError("not a SHA-256")
        if any(PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\0" in name for name in digests):
            raise ValueError("a name leads out of the folder")
    except PARSE_ERRORS as error:
        raise UserError(f"{where}: damaged checksums ({type(error).__name__})") from error
    return digests


def damage(folder: Path, digest: str | None, progress: Callable[[int], object] = lambda _: None) -> Iterator[str]:
    """Compare a sealed folder with its digest.

    Parameters
    ----------
    folder : Path
    digest : str, optional
        What :func:`seal` returned; None if it is not known: then ``checksums.json`` itself is believed.
    progress : callable
        Called with the bytes read of each file.

    Yields
    ------
    str
        One line per file that is damaged, missing or unexpected; the caller adds the remedy.
    """
    try:
        text = (folder / NAME).read_bytes()
        if digest is not None and hashlib.sha256(text).hexdigest() != digest:
            yield f"{folder / NAME}: SHA-256 differs from the manifest"
            return
        digests = parse_digests(text, str(folder / NAME))
    except OSError as error:
        yield f"{folder / NAME}: {_reason(error)}"
        return
    except UserError as error:
        yield str(error)
        return
    wrong = dict(unlisted_and_missing(folder, digests))
    intact = [name for name in digests if name not in wrong]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        for name, problem in zip(
            intact, pool.map(lambda name: _file_damage(folder / name, digests[name]), intact), strict=True
        ):
            if problem is not None:
                wrong[name] = problem
            else:
                progress((folder / name).stat().st_size)
    for name in sorted(wrong):
        yield f"{folder / name}: {wrong[name]}"


def unlisted_and_missing(folder: Path, digests: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Compare the names of the files in a folder with its digests; yield (name, what is wrong)."""
    present = set(_files(folder))
    for name in sorted(digests.keys() - present):
        yield name, "is missing"
    for name in sorted(present - digests.keys()):
        yield name, UNLISTED


def _file_damage(path: Path, digest: str) -> str | None:
    try:
        return None if file_sha256(path) == digest else f"SHA-256 differs from {NAME}"
    except OSError as error:
        return _reason(error)


def _reason(error: OSError) -> str:
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"


def _files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in paths if name != NAME)
