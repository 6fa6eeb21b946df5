"""Participant ids replaced by keyed hashes, the same in images and genetics, on request (``--pseudonymise KEYFILE``).

BLAKE2b with a secret key (RFC 7693): without the key file, a pseudonym can neither be inverted nor compared with a
guessed id. With the key file, an id has the same pseudonym in every dataset. A preprocessor replaces ids after
withdrawn participants and keep lists (both use the ids of the source) and before the split rule (which uses the stored
ids)::

    add_argument(parser)
    pseudonyms = Pseudonyms.read(arguments.pseudonymise)
    participants = pseudonyms.of(participants)
    claim_splits(arguments.out, rule)
    pseudonyms.claim(arguments.out)  # after the split rule, which is recorded in a new manifest only
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mrmfast.errors import UserError
from mrmfast.formats.manifest import Manifest, read_manifest, updating

LEAST_KEY, MOST_KEY = 16, 64  # bytes; the most is BLAKE2b's
DIGEST = 16  # bytes: two of a million participants meet with a chance of 1e-27
SHAPE = re.compile(f"[0-9a-f]{{{2 * DIGEST}}}")


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--pseudonymise``."""
    parser.add_argument(
        "--pseudonymise",
        metavar="KEYFILE",
        type=Path,
        help="store keyed hashes in place of participants' ids; the file holds a secret of 16 to 64 bytes, the same "
        "for images and genetics (openssl rand -hex 32), to be kept apart from the dataset",
    )


@dataclass(frozen=True)
class Pseudonyms:
    """How ids are written down.

    Attributes
    ----------
    key : bytes
        Secret; empty keeps ids as they are in the source.
    """

    key: bytes = b""

    @classmethod
    def read(cls, path: str | Path | None) -> Pseudonyms:
        """Read a key file; None keeps ids as they are.

        Raises
        ------
        UserError
            The file is absent, or holds fewer than 16 or more than 64 bytes.
        """
        if path is None:
            return cls()
        try:
            key = Path(path).read_bytes().strip()
        except OSError as error:
            raise UserError(f"{path}: cannot read the key ({type(error).__name__}); fix --pseudonymise") from error
        if not LEAST_KEY <= len(key) <= MOST_KEY:
            raise UserError(
                f"{path}: holds a key of {len(key)} bytes, {LEAST_KEY} to {MOST_KEY} are needed; make one with "
                "openssl rand -hex 32 and keep it apart from the dataset"
            )
        return cls(key)

    def of(self, participants: Iterable[str]) -> np.ndarray:
        """Return what is stored for participants: ndarray of str, shape (n,), in their order."""
        ids = list(participants)
        if self.key:
            ids = [self._digest(name.encode(), b"mrmfast-id") for name in ids]
        return np.array(ids, dtype=object)

    @property
    def fingerprint(self) -> str:
        """Identifies the key without revealing it; empty for none."""
        return self._digest(b"", b"mrmfast-key") if self.key else ""

    def _digest(self, data: bytes, purpose: bytes) -> str:
        return hashlib.blake2b(data, key=self.key, person=purpose, digest_size=DIGEST).hexdigest()

    def claim(self, dataset: str | Path) -> None:
        """Record in the manifest how ids are written, or check that it is as the dataset was begun.

        Raises
        ------
        UserError
            The dataset holds images or genetics under other ids: they would not join.
        """
        if not self.key:
            self.check(dataset)  # there is nothing to record
            return
        with updating(dataset) as manifest:
            self._check(manifest, dataset)
            manifest.pseudonyms = self.fingerprint

    def check(self, dataset: str | Path) -> None:
        """Check the same before any long work, and record nothing.

        Raises
        ------
        UserError
            As :meth:`claim`.
        """
        self._check(read_manifest(dataset), dataset)

    def _check(self, manifest: Manifest, dataset: str | Path) -> None:
        begun = manifest.shards or manifest.genetics or manifest.pseudonyms
        if begun and manifest.pseudonyms != self.fingerprint:
            raise UserError(
                f"{dataset}: was begun {'with another' if manifest.pseudonyms else 'without a'} key for ids; give "
                "all its preprocessors the same --pseudonymise, or choose another --out"
            )
