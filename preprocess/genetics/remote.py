"""Sources and datasets on an object store: sources are fetched, a dataset is written here and published whole."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.genetics import STORE
from mrmfast.formats.manifest import NAME

CHUNK = 16 << 20
# What belongs to a genotype file named NAME.bed and so on.
COMPANIONS = (".bim", ".fam", ".pvar", ".psam", ".sample")


def is_url(place: str | Path) -> bool:
    """Whether a source or target lies on an object store."""
    return "://" in str(place)


def place(text: str) -> Path | str:
    """Parse a command-line argument: a local path, or a URL as it is (a Path would swallow one slash)."""
    return text if is_url(text) else Path(text)


@contextmanager
def staged(arguments: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """Give a command local folders, and publish its dataset when it ends without an error.

    Local folders of a URL are named by it, in the user's cache folder: a rerun finds what was fetched and the parts
    that are done. They are left there; the message at the end says where.

    Parameters
    ----------
    arguments : Namespace
        With ``src`` and ``out``, paths or URLs.

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
    store, root = _open(str(arguments.out))
    with _complaining(str(arguments.out)):
        # Splits and modalities that are there already bind this run too; the remote manifest is the true one.
        if store.exists(f"{root}/{NAME}"):
            _download(store, f"{root}/{NAME}", local.out / NAME)
        else:
            (local.out / NAME).unlink(missing_ok=True)
    yield local
    with _complaining(str(arguments.out)):
        publish(local.out, str(arguments.out))


def fetch(url: str, folder: Path) -> Path:
    """Copy a genotype file and its companions, or every file of a remote folder; copies that are current are kept.

    A copy is current if the store's mark of it (ETag, or size and time of change) is the one noted beside it: a
    corrected .bed has the size of the wrong one. Local files that are gone from the store are removed.

    Returns
    -------
    Path
        The local file or folder.

    Raises
    ------
    UserError
        There is nothing there, or it cannot be read.
    """
    store, root = _open(url)
    with _complaining(url):
        if store.isdir(root):
            names, result = sorted(p for p in store.ls(root, detail=False) if not store.isdir(p)), folder
        else:
            stem = str(PurePosixPath(root).with_suffix(""))
            names = [root, *(stem + suffix for suffix in COMPANIONS if store.exists(stem + suffix))]
            result = folder / PurePosixPath(root).name
            if not store.exists(root):
                raise UserError(f"{url}: does not exist; give a genotype file or a folder of them")
        folder.mkdir(parents=True, exist_ok=True)
        _remove_others(folder, {PurePosixPath(name).name for name in names})
        entries = {name: store.info(name) for name in names}
        wanted = [name for name in names if not _is_current(folder / PurePosixPath(name).name, entries[name])]
        total = sum(int(entries[name]["size"]) for name in wanted)
        with tqdm(total=total, desc="fetch", unit="B", unit_scale=True, disable=None) as bar:
            for name in wanted:
                path = folder / PurePosixPath(name).name
                # Without a mark until it is whole: a run that is killed in between must not leave an old one.
                _mark_of(path).unlink(missing_ok=True)
                _download(store, name, path, bar)
                with write_aside(_mark_of(path)) as file:
                    file.write(_mark(entries[name]))
    return result


def publish(dataset: Path, url: str) -> None:
    """Copy reports and genetics of a dataset to a URL; the manifest goes last, so readers see all or nothing."""
    store, root = _open(url)
    listed = [*sorted((dataset / STORE).rglob("*")), *sorted((dataset / "reports").rglob("*"))]
    paths = [path for path in listed if path.is_file()]
    with tqdm(total=len(paths), desc="publish", unit="file", disable=None) as bar:
        for path in paths:
            store.put_file(str(path), f"{root}/{path.relative_to(dataset).as_posix()}")
            bar.update()
    store.put_file(str(dataset / NAME), f"{root}/{NAME}")


def _mark(entry: dict[str, Any]) -> str:
    """Return what changes with a remote file: its size and ETag, or time of change where there is none."""
    known = (entry[name] for name in ("ETag", "etag", "md5Hash", "LastModified", "mtime") if entry.get(name))
    return f"{entry['size']} {next(known, '')}"


def _mark_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.mark")


def _is_current(path: Path, entry: dict[str, Any]) -> bool:
    mark = _mark_of(path)
    return (
        path.is_file()
        and path.stat().st_size == int(entry["size"])
        and mark.is_file()
        and mark.read_text(encoding="utf-8") == _mark(entry)
    )


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove fetched files that are not in the store any more; a dataset that is written there stays."""
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith(".") and path.name not in {*names, NAME}:
            path.unlink()
            _mark_of(path).unlink(missing_ok=True)


def _folder(url: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "mrmfast" / "genetics" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _open(url: str) -> tuple[Any, str]:
    import fsspec  # only URLs need it

    try:
        store, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{url}: no object store is known by that scheme ({type(error).__name__}); use s3://"
        ) from error
    store.invalidate_cache()
    return store, root.rstrip("/")


def _download(store: Any, name: str, path: Path, bar: Any = None) -> None:
    with store.open(name, "rb") as source, write_aside(path, "wb") as file:
        while block := source.read(CHUNK):
            file.write(block)
            if bar is not None:
                bar.update(len(block))


@contextmanager
def _complaining(url: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, _store_errors()) or getattr(error, "errno", 0) == errno.ENOSPC:
            raise  # a defect of ours, or this machine's disk is full
        if "Credentials" in type(error).__name__:
            raise UserError(
                f"{url}: no credentials for this bucket; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                "(or AWS_PROFILE, or a role)"
            ) from error
        raise UserError(f"{url}: cannot be reached ({type(error).__name__}); check name, region and rights") from error


def _store_errors() -> tuple[type[Exception], ...]:
    """Return what object stores raise; those of S3's library are neither OSError nor ValueError."""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return OSError, ValueError
    return OSError, ValueError, BotoCoreError, ClientError
