"""PLINK 1 file sets as ``pgs`` reads them: participants x variants, A1 counted. New code uses :mod:`.genotypes`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from preprocess.genetics import genotypes
from preprocess.genetics.genotypes.base import autosome, natural_key
from preprocess.genetics.genotypes.plink1 import read_bim, read_fam

__all__ = ["Genotypes", "autosome", "natural_key", "open_genotypes", "read_bim", "read_fam"]


@dataclass(frozen=True)
class Genotypes:
    """Hard calls of one cohort.

    Attributes
    ----------
    source : genotypes.Genotypes
    variants : DataFrame
        Those of `source` with ``alt`` called ``a1`` and ``ref`` called ``a2``.
    """

    source: genotypes.Genotypes
    variants: pd.DataFrame

    @property
    def participants(self) -> np.ndarray:
        """Ids, shape (participants,)."""
        return self.source.samples

    @property
    def counts(self) -> dict[str, int]:
        """Of participants and variants."""
        return self.source.counts

    def read(self, variants: np.ndarray, participants: slice = slice(None)) -> np.ndarray:
        """Read copies of A1: int8, shape (participants, n); negative is missing."""
        return np.ascontiguousarray(self.source.hard_calls(variants, participants).T)


def open_genotypes(source: Path, keep: Path | None = None) -> Genotypes:
    """Open a .bed file or a folder of them.

    Raises
    ------
    UserError
        As :func:`genotypes.open_genotypes`, or `source` is of another format.
    """
    paths = genotypes.find_files(source)
    if paths[0].suffix != ".bed":
        raise UserError(f"{paths[0]}: is not a .bed file; give a PLINK .bed file or a folder of them")
    found = genotypes.open_genotypes(source, reference="a2", keep=keep)
    return Genotypes(found, found.variants.rename(columns={"alt": "a1", "ref": "a2"}))
