"""Which allele is the reference: said by the user, or read from a FASTA file; never guessed: files disagree on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mrmfast.errors import UserError

# What may be said of each format -> whether the file's `alt` column is then the reference.
RULES = {
    ".bed": {"a2": False, "a1": True},
    ".pgen": {"ref": False, "alt": True},
    ".bgen": {"ref-first": False, "ref-last": True},
    ".vcf": {"ref": False, "alt": True},
}
NAMES = ("a1", "a2", "ref", "alt", "ref-first", "ref-last")
HELP = {
    ".bed": "say which .bim column holds the reference genome's allele: a2 (column 6, as plink2 --make-bed writes it) "
    "or a1 (column 5); plink 1.9 puts the minor allele in A1 whatever the reference: give --fasta for such files",
    ".pgen": "the .pvar calls REF provisional (INFO PR: taken from A2 of a .bed); say ref, alt, or give --fasta",
    ".bgen": "say which allele is the reference genome's: ref-first (raw UK Biobank) or ref-last "
    "(plink2 --export bgen-1.x unless told), or give --fasta",
}
# More mismatches than this share of the variants: the FASTA is of another build, or positions are.
MOST_MISMATCHES = 0.2


def alt_is_reference(suffix: str, path: Path, reference: str | None, provisional: int) -> bool:
    """Return whether the file's ``alt`` column holds the reference allele, by the user's word.

    Raises
    ------
    UserError
        Nothing was said where something must be, or the word is of another format.
    """
    rules = RULES[suffix]
    if reference is None and (suffix == ".vcf" or (suffix == ".pgen" and not provisional)):
        return False
    if reference is None:
        raise UserError(f"--reference: {path.name}: {HELP[suffix]}")
    if reference not in rules:
        raise UserError(f"--reference {reference}: {path.name}: for {suffix} files give {' or '.join(rules)}")
    return rules[reference]


class ReferenceGenome:
    """A FASTA file.

    Parameters
    ----------
    path : Path
        Plain or bgzip; a .fai index is made beside it if there is none.

    Raises
    ------
    UserError
        Absent or not a FASTA file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"--fasta {path}: does not exist; give the reference genome the positions refer to")
        from pyfaidx import Fasta, FastaIndexingError  # only those who give a FASTA need it

        try:
            self.fasta: Any = Fasta(str(path), as_raw=True, sequence_always_upper=True)
        except (FastaIndexingError, ValueError, OSError, UnicodeDecodeError, ImportError) as error:
            raise UserError(
                f"--fasta {path}: cannot be indexed ({type(error).__name__}); give FASTA, plain or bgzip, "
                "in a folder that can be written or with its .fai"
            ) from error

    def orient(self, variants: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Compare alleles with the genome.

        Where both alleles agree with it (an insertion or deletion in a repeat), the longer one is the reference.

        Parameters
        ----------
        variants : DataFrame
            With ``chromosome`` (1..22), ``position``, ``ref``, ``alt``.

        Returns
        -------
        swapped : ndarray of bool, shape (variants,)
            ``alt`` is the reference.
        differs : ndarray of bool, shape (variants,)
            Neither allele is: other build, other strand, or an unknown allele.

        Raises
        ------
        UserError
            A chromosome is absent, or so many alleles differ that the build must be another one.
        """
        swapped, differs = (np.zeros(len(variants), dtype=bool) for _ in range(2))
        for number, rows in variants.reset_index(drop=True).groupby("chromosome"):
            # One chromosome in memory at a time: at most 250 MB.
            sequence = self._sequence(int(number))
            starts = rows["position"].to_numpy() - 1
            ref, alt = (self._agrees(sequence, starts, rows[name].tolist()) for name in ("ref", "alt"))
            longer = np.array([len(y) > len(x) for x, y in zip(rows["ref"], rows["alt"], strict=True)], dtype=bool)
            swapped[rows.index] = alt & (~ref | longer)
            differs[rows.index] = ~alt & ~ref
        if differs.mean() > MOST_MISMATCHES:
            raise UserError(
                f"--fasta {self.path}: {int(differs.sum())} of {len(differs)} variants have neither allele there; "
                "it is of another build than the positions, or the alleles are of the other strand"
            )
        return swapped, differs

    def _sequence(self, number: int) -> str:
        for name in (f"chr{number}", str(number)):
            if name in self.fasta:
                return str(self.fasta[name][:])
        raise UserError(f"--fasta {self.path}: has no sequence chr{number} or {number}; give the whole genome")

    @staticmethod
    def _agrees(sequence: str, starts: np.ndarray, alleles: list[str]) -> np.ndarray:
        return np.array(
            [s >= 0 and sequence.startswith(a, s) for s, a in zip(starts.tolist(), alleles, strict=True)], dtype=bool
        )
