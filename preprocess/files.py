"""Which files of a dataset folder the manifest does not explain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mrmfast.formats.genetics import STORE
from mrmfast.formats.image_shards import shard_name
from mrmfast.formats.manifest import NAME, Manifest
from mrmfast.formats.records import RECORD, REPORTS
from mrmfast.formats.sample_table import INDEX
from mrmfast.formats.splits import RELATIVES

IMAGES = "images"
LISTED = 3  # names in the note on other files


def unexpected_files(dataset: Path, manifest: Manifest) -> Iterator[str]:
    """Yield files and folders in the parts of a dataset that the manifest does not list, relative to the dataset.

    The insides of Zarr folders have digests of their own. Hidden files (locks, parts of an unfinished command) belong
    to the commands. Tars that another tool wrote may lie beside others that are no part of the dataset.
    """
    listed = {name for shard in manifest.shards for name in (shard.path, shard.index)} | {INDEX, RECORD}
    if manifest.files is not None:
        yield from sorted(_entries(dataset, REPORTS) - manifest.files.keys())
    if all(shard.path == shard_name(number) for number, shard in enumerate(manifest.shards)):
        yield from sorted(_entries(dataset, IMAGES, without=INDEX) - listed)
    known = {f"{STORE}/zarr.json", *(f"{STORE}/{name}" for name in manifest.genetics)}
    if (dataset / STORE).is_dir():
        names = (f"{STORE}/{path.name}" for path in (dataset / STORE).iterdir() if not path.name.startswith("."))
        yield from sorted(set(names) - known)


def other_files(dataset: Path, manifest: Manifest) -> list[str]:
    """Return notes on what the manifest does not cover, without being damage."""
    notes = []
    if manifest.files is None and ((dataset / REPORTS).exists() or (dataset / RECORD).exists()):
        notes.append(f"reports and {RECORD} are not covered: the dataset was written by an earlier version")
    known = {Path(shard.path).parts[0] for shard in manifest.shards} | {IMAGES, STORE, REPORTS, NAME, RELATIVES}
    visible = (path.name for path in dataset.iterdir() if not path.name.startswith("."))
    others = sorted(set(visible) - known)
    if others:
        names = ", ".join(others[:LISTED]) + (", ..." if len(others) > LISTED else "")
        notes.append(f"not part of the dataset: {names}")
    return notes


def _entries(dataset: Path, folder: str, without: str = "") -> set[str]:
    """Return the files below a folder, relative to the dataset, but for hidden ones and those below `without`."""
    paths = (path.relative_to(dataset) for path in (dataset / folder).rglob("*") if path.is_file())
    visible = (path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    return {name for name in visible if not without or not name.startswith(f"{without}/")}
