"""Ways in which a file or a folder is damaged, seeded."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

HOLE = 4096  # bytes of zeros, or the complete file where it is shorter
KINDS = ("bit", "hole", "truncated", "missing", "swapped", "extra")


def damage(kind: str, path: Path, sibling: Path | None, generator: random.Random) -> bool:
    """Damage a file in position; return False where this kind does not change it.

    Parameters
    ----------
    kind : {"bit", "hole", "truncated", "missing", "swapped", "extra"}
    path : Path
    sibling : Path, optional
        Another file, with which `path` is swapped.
    generator : Random
    """
    if kind == "missing":
        path.unlink()
        return True
    if kind == "extra":
        shutil.copyfile(path, path.with_name(f"{path.stem}-1{path.suffix}"))
        return True
    before = path.read_bytes()
    if kind == "swapped":
        if sibling is None or sibling.read_bytes() == before:
            return False
        path.write_bytes(sibling.read_bytes())
        sibling.write_bytes(before)
        return True
    if not before:
        return False
    raw = bytearray(before)
    position = generator.randrange(len(raw))
    if kind == "bit":
        raw[position] ^= 1 << generator.randrange(8)
    elif kind == "hole":
        start = position // 2
        raw[start : start + HOLE] = bytes(len(raw[start : start + HOLE]))
    else:
        del raw[position:]
    path.write_bytes(raw)
    return bytes(raw) != before


def siblings(files: list[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Yield each file with the one that it is swapped with: of its own folder, ending or name where there is one."""
    for path in files:
        others = [other for other in files if other != path]
        alike = [
            *(other for other in others if other.parent == path.parent and other.suffix == path.suffix),
            *(other for other in others if other.name == path.name),
            *others,
        ]
        yield path, next(iter(alike), None)
