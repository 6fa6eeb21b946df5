"""The small files of a dataset in a local folder, each compared with its digest whenever it is read."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Executor
from pathlib import Path

from mrmfast.errors import MissingError, UserError
from mrmfast.formats.checksums import NAME, UNLISTED, parse_digests, unlisted_and_missing
from mrmfast.storage.seals import Seals

REMEDY = "copy the dataset again, or run its preprocessor again"


class LocalFolder:
    """Reads files of a dataset folder.

    Parameters
    ----------
    folder : Path
    pool : Executor
        Threads that wait for the disk.
    closing : Event
        If set, nothing is read any more.

    Attributes
    ----------
    seals : Seals
        Files in sealed folders are compared with their digests.
    """

    def __init__(self, folder: Path, pool: Executor, closing: threading.Event) -> None:
        self.url, self.pool, self.closing = str(folder), pool, closing
        self.folder = folder
        self.seals = Seals(self._load)

    def read(self, path: str) -> bytes:
        """Return a file.

        Raises
        ------
        MissingError
            It does not exist.
        UserError
            It cannot be read, or differs from its digest.
        """
        return self._read(path, self.seals.digest(path))

    def names(self, folder: str) -> list[str]:
        """Return the names directly below a folder."""
        return sorted(path.name for path in (self.folder / folder).iterdir())

    def _read(self, path: str, digest: str | None) -> bytes:
        where = self.folder / path
        try:
            data = where.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise MissingError(f"{where}: is missing; {REMEDY}") from None
        except OSError as error:
            raise UserError(
                f"{where}: cannot be read ({error.strerror}); check its permissions and the disk"
            ) from error
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            raise UserError(f"{where}: damaged (SHA-256 differs from the manifest); {REMEDY}")
        return data

    def _load(self, folder: str, digest: str) -> dict[str, str]:
        """Return the digests of a folder, after a comparison of its file names with them."""
        name = f"{folder}/{NAME}"
        digests = parse_digests(self._read(name, digest), str(self.folder / name))
        for file, problem in unlisted_and_missing(self.folder / folder, digests):
            remedy = "remove it" if problem == UNLISTED else REMEDY
            raise UserError(f"{self.folder / folder / file}: {problem}; {remedy}")
        return digests
