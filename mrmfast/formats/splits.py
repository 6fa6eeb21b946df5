"""The split rule: which participants are training data. Documented in ``docs/formats.md``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrmfast.errors import UserError

RELATIVES = "relatives.json"


@dataclass(frozen=True)
class SplitRule:
    """Which participants are training data: a keyed hash of the id, so every tool agrees without a list.

    Attributes
    ----------
    seed : int
        Changes who lands where.
    test_fraction : float
        Expected share of participants held out, in [0, 1].
    relatives : str
        SHA-256 of the file of related participants, who are on one side; empty: nobody is related.
    family_of : mapping of str to str, optional
        Related participant -> the family, whose id decides in place of the participant's. None until
        :meth:`with_relatives` has read the file.
    """

    seed: int = 0
    test_fraction: float = 0.2
    relatives: str = ""
    family_of: Mapping[str, str] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of_families(cls, seed: int, test_fraction: float, families: Iterable[Iterable[str]]) -> SplitRule:
        """Return a rule that keeps families together, as their participants are stored."""
        text = relatives_text(families)
        return cls(seed, test_fraction, hashlib.sha256(text).hexdigest()).with_relatives(text, RELATIVES)

    def with_relatives(self, text: bytes, where: str) -> SplitRule:
        """Return the rule with the related participants of the file.

        Raises
        ------
        UserError
            The file is not the one that the rule names.
        """
        if hashlib.sha256(text).hexdigest() != self.relatives:
            raise UserError(f"{where}: SHA-256 differs from the manifest; copy the dataset again")
        families = json.loads(text)["families"]
        return SplitRule(
            self.seed, self.test_fraction, self.relatives, {name: family[0] for family in families for name in family}
        )

    def families(self) -> list[list[str]]:
        """Return the families, sorted."""
        members: dict[str, list[str]] = {}
        for name, family in (self.family_of or {}).items():
            members.setdefault(family, []).append(name)
        return sorted(sorted(names) for names in members.values())

    def fields(self) -> dict[str, Any]:
        """Return the fields of the manifest; no ids."""
        fields: dict[str, Any] = {"seed": self.seed, "test_fraction": self.test_fraction}
        return {**fields, "relatives": self.relatives} if self.relatives else fields

    def of(self, participant: str) -> str:
        """Return ``"train"`` or ``"test"`` for a participant id."""
        return "train" if self.training([participant])[0] else "test"

    def training(self, participants: Iterable[str]) -> np.ndarray:
        """Return who of n participants is training data, bool, shape (n,).

        Raises
        ------
        UserError
            The related participants are not read.
        """
        if self.relatives and self.family_of is None:
            raise UserError(f"{RELATIVES}: is missing in the dataset; copy the dataset again")
        family_of = self.family_of or {}
        prefix = f"{self.seed}:".encode()
        ids = (family_of.get(name, name) for name in participants)
        digests = b"".join(hashlib.sha256(prefix + name.encode()).digest()[:8] for name in ids)
        # As integers: a float64 would round a hash near the edge to the other side.
        return np.frombuffer(digests, dtype=">u8") >= np.uint64(min(int(self.test_fraction * 2**64), 2**64 - 1))


def relatives_text(families: Iterable[Iterable[str]]) -> bytes:
    """Return the content of the file of related participants: equal families give equal bytes."""
    members = sorted(sorted(family) for family in families)
    return (json.dumps({"families": members}, indent=0) + "\n").encode()
