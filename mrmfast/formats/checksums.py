"""A folder sealed with the SHA-256 of every file in it, so that one digest in the manifest vouches for all of them.

Zarr's own checksums (zstd, crc32c) cover chunks only, and only when they are read; a flipped byte in a ``zarr.json``
can change a shape or an attribute without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mrmfast.atomic import write_aside

NAME = "checksums.json"
HASHING_THREADS = 4


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


def damage(folder: Path, digest: str, progress: Callable[[int], object]) -> Iterator[str]:
    """Compare a sealed folder with its digest.

    Parameters
    ----------
    folder : Path
    digest : str
        What :func:`seal` returned.
    progress : callable
        Called with the bytes read of each file.

    Yields
    ------
    str
        One line per file that is damaged, missing or unexpected; the caller adds the remedy.
    """
    if not (folder / NAME).is_file():
        yield f"{folder / NAME}: is missing"
        return
    if file_sha256(folder / NAME) != digest:
        yield f"{folder / NAME}: SHA-256 differs from the manifest"
        return
    digests = json.loads((folder / NAME).read_bytes())
    present = set(_files(folder))
    for name in sorted(digests.keys() | present):
        if name not in present:
            yield f"{folder / name}: is missing"
        elif name not in digests:
            yield f"{folder / name}: does not belong there"
        else:
            if file_sha256(folder / name) != digests[name]:
                yield f"{folder / name}: SHA-256 differs from {NAME}"
            progress((folder / name).stat().st_size)


def _files(folder: Path) -> list[str]:
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in paths if name != NAME)
