"""Sources and datasets on an object store: sources are fetched; a dataset is written locally and published complete.

The client is the same as in training (:mod:`mrmfast.storage`): same schemes, credentials, endpoint, retries and
messages.
"""

from __future__ import annotations

import argparse
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path

from tqdm import tqdm

from mrmfast.atomic import write_aside
from mrmfast.cache import cache_folder
from mrmfast.errors import MissingError, UserError
from mrmfast.formats.genetics import STORE
from mrmfast.formats.manifest import NAME
from mrmfast.meters import Meters
from mrmfast.storage.client import Client
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.object_store import ObjectEntry
from preprocess.genetics.genotypes.files import format_of

# Suffixes of the companion files of a genotype file (NAME.bed and so on).
COMPANIONS = (".bim", ".fam", ".pvar", ".psam", ".sample")


def is_url(location: str | Path) -> bool:
    """Whether a source or target is on an object store."""
    return "://" in str(location)


def location(text: str) -> Path | str:
    """Parse a command-line argument: a local path, or a URL as a string (a Path would drop one slash)."""
    return text if is_url(text) else Path(text)


@contextmanager
def staged(arguments: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """Give a command local folders, and publish the dataset when the command ends without an error.

    The URL determines the name of a local folder in the cache folder (``MRMFAST_CACHE``): a rerun finds fetched files
    and finished parts. The local folders are not removed; the message at the end names them.

    Parameters
    ----------
    arguments : Namespace
        Holds ``src`` and ``out``, paths or URLs.

    Yields
    ------
    Namespace
        A copy with local paths.

    Raises
    ------
    UserError
        A URL cannot be read or written.
    """
    local = copy(arguments)
    if is_url(arguments.src):
        local.src = fetch(str(arguments.src), _folder(str(arguments.src)))
    if not is_url(arguments.out):
        yield local
        return
    local.out = _folder(str(arguments.out))
    with _connected(str(arguments.out)) as client:
        # Existing splits and modalities bind this run too: the remote manifest is authoritative.
        try:
            _download(client, client.entry(NAME), local.out / NAME)
        except MissingError:
            (local.out / NAME).unlink(missing_ok=True)
        yield local
        publish(local.out, client)


def fetch(url: str, folder: Path) -> Path:
    """Copy a genotype file and its companions, or every file of a remote folder; current copies are kept.

    A copy is current if size and mark (ETag, or modification time) of the remote file equal those recorded with the
    copy; the size alone is not enough, because a corrected .bed has the size of the old one. Local files that no longer
    exist in the store are removed.

    Returns
    -------
    Path
        The local file or folder.

    Raises
    ------
    UserError
        The URL holds no file, or a file cannot be read.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    is_file = format_of(Path(name)) is not None
    with _connected(parent if is_file else url) as client:
        entries = _file_and_companions(client, url, name) if is_file else client.entries()
        if not entries:
            raise UserError(f"{url}: holds no file; give a genotype file or a folder of them")
        folder.mkdir(parents=True, exist_ok=True)
        _remove_others(folder, {entry.name for entry in entries})
        outdated = [entry for entry in entries if not _is_current(folder / entry.name, entry)]
        total = sum(entry.size for entry in outdated)
        with tqdm(total=total, desc="fetch", unit="B", unit_scale=True, disable=None) as bar:
            for entry in outdated:
                path = folder / entry.name
                # The mark is written after the file: a killed run must not leave an old mark.
                _mark_of(path).unlink(missing_ok=True)
                _download(client, entry, path, bar)
                with write_aside(_mark_of(path)) as file:
                    file.write(_mark(entry))
    return folder / name if is_file else folder


def publish(dataset: Path, client: Client) -> None:
    """Copy reports and genetics of a dataset to a URL; the manifest is written last, so readers see all or nothing."""
    listed = [*sorted((dataset / STORE).rglob("*")), *sorted((dataset / "reports").rglob("*"))]
    paths = [path for path in listed if path.is_file()]
    with tqdm(total=len(paths), desc="publish", unit="file", disable=None) as bar:
        for path in paths:
            client.put(path.relative_to(dataset).as_posix(), path)
            bar.update()
    client.put(NAME, dataset / NAME)


@contextmanager
def _connected(url: str) -> Iterator[Client]:
    client = Client(url.rstrip("/"), {}, FetchConfig(), Meters(), threading.Event())
    try:
        yield client
    finally:
        client.closing.set()
        client.close()


def _file_and_companions(client: Client, url: str, name: str) -> list[ObjectEntry]:
    try:
        entries = [client.entry(name)]
    except MissingError:
        raise UserError(f"{url}: does not exist; give a genotype file or a folder of them") from None
    for suffix in COMPANIONS:
        try:
            entries.append(client.entry(str(Path(name).with_suffix(suffix))))
        except MissingError:
            continue
    return entries


def _mark(entry: ObjectEntry) -> str:
    """Return a text that changes with the remote file."""
    return f"{entry.size} {entry.mark}"


def _mark_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.mark")


def _is_current(path: Path, entry: ObjectEntry) -> bool:
    mark = _mark_of(path)
    return (
        path.is_file()
        and path.stat().st_size == entry.size
        and mark.is_file()
        and mark.read_text(encoding="utf-8") == _mark(entry)
    )


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove fetched files that are no longer in the store; a dataset in the folder stays."""
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith(".") and path.name not in {*names, NAME}:
            path.unlink()
            _mark_of(path).unlink(missing_ok=True)


def _folder(url: str) -> Path:
    folder = cache_folder() / "genetics" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(client: Client, entry: ObjectEntry, path: Path, bar: tqdm | None = None) -> None:
    with write_aside(path, "wb") as file:

        def write(_: int, chunk: bytes) -> None:
            file.write(chunk)
            if bar is not None:
                bar.update(len(chunk))

        client.stream(entry.name, 0, entry.size, entry.size, write)
