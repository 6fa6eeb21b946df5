"""The digests of a dataset's sealed folders, read when a file of the folder is first asked for."""

from __future__ import annotations

from collections.abc import Callable

from mrmfast.formats.checksums import NAME


class Seals:
    """SHA-256 of the files in the sealed folders of a dataset.

    Parameters
    ----------
    load : callable
        Takes a folder and the SHA-256 of its ``checksums.json``; returns file name -> SHA-256.
    """

    def __init__(self, load: Callable[[str, str], dict[str, str]]) -> None:
        self._load = load
        self._sealed: dict[str, str] = {}
        self._digests: dict[str, dict[str, str]] = {}

    def trust(self, folder: str, digest: str) -> None:
        """Declare a folder sealed; `digest` is the SHA-256 of its ``checksums.json``."""
        self._sealed[folder] = digest

    def below(self, folder: str) -> dict[str, str]:
        """Return name -> digest of the sealed folders directly below a folder."""
        return {
            name.removeprefix(f"{folder}/"): digest
            for name, digest in self._sealed.items()
            if name.startswith(f"{folder}/")
        }

    def holds(self, path: str) -> bool:
        """Return whether a file lies in a sealed folder."""
        return self._folder(path) is not None

    def digest(self, path: str) -> str | None:
        """Return the SHA-256 that a file must have; None if it is not listed, or lies in no sealed folder."""
        folder = self._folder(path)
        if folder is None:
            return None
        name = path.removeprefix(f"{folder}/")
        if name == NAME:
            return self._sealed[folder]
        if folder not in self._digests:
            self._digests[folder] = self._load(folder, self._sealed[folder])
        return self._digests[folder].get(name)

    def _folder(self, path: str) -> str | None:
        return next((folder for folder in self._sealed if path.startswith(f"{folder}/")), None)
