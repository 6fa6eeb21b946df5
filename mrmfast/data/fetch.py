"""Bytes of a dataset from a folder or an object store, whole files through a checked local cache.

Credentials come from the standard chain of the store's own library and are never read, kept or logged here.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock

from mrmfast.cache import cache_folder
from mrmfast.data.manifest import NAME, Manifest, Shard
from mrmfast.data.shards import file_sha256
from mrmfast.errors import UserError

DOWNLOADS = 4  # shards under way at once


class Source:
    """A dataset, wherever it is.

    Parameters
    ----------
    url : str
        Folder, or ``s3://bucket/prefix`` (any fsspec URL).
    cache : str, optional
        Folder for downloaded shards; by default one under the user's cache folder. Shared by the ranks of a node.
    storage_options : dict, optional
        Passed to fsspec.
    """

    def __init__(self, url: str, cache: str | None = None, storage_options: dict[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self.remote = "://" in self.url and not self.url.startswith("file://")
        self.storage_options = dict(storage_options or {})
        self._cache = cache_folder(cache)
        from types import SimpleNamespace

        from mrmfast.data.meters import Meters

        self.meters, self.config = Meters(), SimpleNamespace(requests=4)
        self._files: dict[str, Future[Path]] = {}
        self._pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="mrmfast-fetch")

    def close(self) -> None:
        """Stop downloading; files in the cache stay."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def zarr_options(self) -> dict[str, Any] | None:
        """Return what zarr takes as ``storage_options`` (None for a local folder)."""
        return self.storage_options if self.remote else None

    def manifest(self) -> Manifest:
        """Read ``dataset.json``.

        Raises
        ------
        UserError
            No dataset there, no credentials, no such bucket, or no connection.
        """
        where = f"{self.url}/{NAME}"
        if not self.remote:
            path = Path(self.url.removeprefix("file://")) / NAME
            if not path.exists():
                raise UserError(
                    f"data.path={self.url}: no {NAME} there; make a dataset with python -m preprocess, or mend the path"
                )
            return Manifest.from_json(path.read_bytes(), str(path))
        try:
            with fsspec.open(where, "rb", **self.storage_options) as file:
                return Manifest.from_json(file.read(), where)
        except Exception as error:
            raise self._explain(error, where) from error

    def local(self, shard: Shard) -> Path:
        """Return a local file with the shard's bytes, downloading it first where needed.

        Parameters
        ----------
        shard : Shard
            Manifest entry: path, bytes and SHA-256.

        Raises
        ------
        UserError
            The file is missing, has the wrong length, or (downloads) fails its checksum twice.
        """
        self.prefetch([shard])
        return self._files[shard.path].result()

    def release(self, shard: Shard) -> None:
        """Allow a shard to be evicted."""

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Begin to download shards that :meth:`local` will be asked for; returns at once."""
        for shard in shards:
            if shard.path not in self._files:
                self._files[shard.path] = self._pool.submit(self._download if self.remote else self._check_local, shard)

    def _check_local(self, shard: Shard) -> Path:
        path = Path(self.url.removeprefix("file://")) / shard.path
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise UserError(
                f"{path}: shard is missing; copy the dataset again, or run its preprocessor again"
            ) from None
        if size != shard.bytes:
            raise UserError(f"{path}: has {size} bytes, the manifest says {shard.bytes}; copy the dataset again")
        return path

    def _download(self, shard: Shard) -> Path:
        # The checksum is the name: two datasets, or two versions of one, never meet in the cache.
        final = self._cache / f"{shard.sha256}.tar"
        if final.exists():
            return final
        self._cache.mkdir(parents=True, exist_ok=True)
        where = f"{self.url}/{shard.path}"
        with FileLock(self._cache / f"{shard.sha256}.lock"):
            if final.exists():
                return final
            for _ in range(2):
                descriptor, aside = tempfile.mkstemp(dir=self._cache, suffix=".partial")
                try:
                    with (
                        os.fdopen(descriptor, "wb") as target,
                        fsspec.open(where, "rb", **self.storage_options) as file,
                    ):
                        shutil.copyfileobj(file, target, 8 << 20)
                        target.flush()
                        os.fsync(target.fileno())
                    if file_sha256(aside) == shard.sha256:
                        os.replace(aside, final)
                        return final
                except OSError as error:
                    if error.errno == errno.ENOSPC:
                        raise UserError(
                            f"{self._cache}: no space left for {shard.bytes} bytes; free space or set data.cache"
                        ) from error
                    raise self._explain(error, where) from error
                except Exception as error:
                    raise self._explain(error, where) from error
                finally:
                    Path(aside).unlink(missing_ok=True)
        raise UserError(f"{where}: SHA-256 differs from the manifest, twice; upload the dataset again")

    def _explain(self, error: Exception, where: str) -> Exception:
        """Turn an object store's exception into one line with a remedy; anything unknown stays what it is."""
        kind, text = type(error).__name__, str(error)
        if isinstance(error, UserError):
            return error
        if kind in ("NoCredentialsError", "PartialCredentialsError") or "Unable to locate credentials" in text:
            return UserError(
                f"{where}: no credentials for this bucket; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                "(or AWS_PROFILE, or a role), or make the bucket public and set data.anonymous=true"
            )
        if isinstance(error, PermissionError) or "Forbidden" in text:
            return UserError(
                f"{where}: access denied; the credentials lack s3:GetObject or s3:ListBucket on this bucket"
            )
        if isinstance(error, FileNotFoundError):
            return UserError(f"{where}: not there; upload the dataset, or mend data.path")
        if "Protocol not known" in text:
            return UserError(f"{where}: {text}; data.path is a folder, or a URL such as s3://BUCKET/PREFIX")
        if isinstance(error, ImportError):
            return UserError(f"{where}: {text}; install the fsspec backend of this protocol")
        if "connect" in kind.lower() or "connect" in text.lower():
            return UserError(f"{where}: cannot connect to the object store; check the network and AWS_ENDPOINT_URL")
        return error
