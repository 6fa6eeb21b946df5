"""Which allele is the reference: stated by the user, or read from a FASTA file; never guessed, because files disagree.

:func:`orient` applies it to a cohort: ``snps`` counts copies of the allele that differs from the reference.

See docs/genetics-pitfalls.md#a1-is-not-the-reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mrmfast.errors import UserError
from preprocess.genetics.genotypes.base import GenotypeFile
from preprocess.genetics.genotypes.files import format_of
from preprocess.genetics.genotypes.reader import Genotypes
from preprocess.genetics.genotypes.tables import X_CHROMOSOME

# What may be stated of each format -> whether the file's `alt` column is then the reference.
RULES = {
    ".bed": {"a2": False, "a1": True},
    ".pgen": {"ref": False, "alt": True},
    ".bgen": {"ref-first": False, "ref-last": True},
    ".vcf": {"ref": False, "alt": True},
}
NAMES = ("a1", "a2", "ref", "alt", "ref-first", "ref-last")
HELP = {
    ".bed": "state which .bim column holds the reference genome's allele: a2 (column 6, as plink2 --make-bed writes "
    "it) or a1 (column 5); plink 1.9 puts the minor allele in A1 whatever the reference: give --fasta for such files",
    ".pgen": "the .pvar calls REF provisional (INFO PR: taken from A2 of a .bed); state ref, alt, or give --fasta",
    ".bgen": "state which allele is the reference genome's: ref-first (raw UK Biobank) or ref-last "
    "(plink2 --export bgen-1.x unless told), or give --fasta",
}
# More mismatches than this share of the variants: the FASTA is of another build, or positions are.
MOST_MISMATCHES = 0.2
COLUMNS = ["file", "column", "chromosome", "rank", "id", "position", "ref", "alt", "swapped"]


@dataclass(frozen=True)
class Oriented:
    """Autosomal, bi-allelic variants whose reference allele is known.

    Attributes
    ----------
    genotypes : Genotypes
        ``variants`` by chromosome, then file order: ``file``, ``column``, ``chromosome`` (1..22), ``rank`` (place among
        the chromosome's bi-allelic variants, those that the FASTA excludes counted too), ``id``, ``position``, ``ref``,
        ``alt``, ``swapped`` (bool: the file calls ``ref`` its ``alt``). Calls are copies of ``alt``.
    excluded : DataFrame
        Autosomal variants excluded: the same columns and ``fate`` (``multi_allelic``, ``reference_mismatch``).
    counts : dict
        ``variants`` (in the files), ``variants_not_autosomal``, ``variants_multi_allelic``,
        ``variants_reference_mismatch``, ``variants_swapped``, ``variants_reference_provisional``.
    """

    genotypes: Genotypes
    excluded: pd.DataFrame
    counts: dict[str, int]


def orient(genotypes: Genotypes, reference: str | None = None, fasta: Path | None = None) -> Oriented:
    """Order the alleles of every variant by the reference genome.

    Rules, all counted: only autosomes are used; sites with more than two alleles are excluded (split them
    with ``bcftools norm -m-`` to keep them); variants whose alleles both differ from the FASTA are excluded. Repeated
    variant ids stay in the table: what they mean depends on the use.

    See docs/genetics-pitfalls.md#chromosome-codes.

    Parameters
    ----------
    genotypes : Genotypes
    reference : str, optional
        Which allele is the reference: ``a1`` or ``a2`` (.bed), ``ref`` or ``alt`` (.pgen, VCF; ``ref`` by default),
        ``ref-first`` or ``ref-last`` (.bgen).
    fasta : path, optional
        Reference genome; decides variant by variant instead.

    Raises
    ------
    UserError
        The reference is not stated, no variant is usable, or the FASTA is of another build.
    """
    if fasta is not None and reference is not None:
        raise UserError("--reference and --fasta: give one of them, the FASTA decides variant by variant")
    files, table = genotypes.files, genotypes.variants
    swapped = [fasta is None and alt_is_reference(file, reference) for file in files]
    table = table.assign(swapped=np.array(swapped)[table["file"].to_numpy()])
    variants, excluded = _usable(table, None if fasta is None else ReferenceGenome(fasta), files[0].path)
    fates = excluded["fate"].value_counts()
    chromosome = genotypes.variants["chromosome"].to_numpy()
    counts = {
        "variants": len(table),
        "variants_not_autosomal": int(((chromosome == 0) | (chromosome == X_CHROMOSOME)).sum()),
        "variants_multi_allelic": int(fates.get("multi_allelic", 0)),
        "variants_reference_mismatch": int(fates.get("reference_mismatch", 0)),
        "variants_swapped": int(variants["swapped"].sum()),
        "variants_reference_provisional": 0 if fasta is not None else sum(file.provisional for file in files),
    }
    return Oriented(replace(genotypes, variants=variants), excluded, counts)


def _usable(table: pd.DataFrame, genome: ReferenceGenome | None, where: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split off what is excluded, rank the rest, and order alleles by the genome or by the user's statement."""
    autosomal = (table["chromosome"] > 0) & (table["chromosome"] < X_CHROMOSOME)
    table = table[autosomal].sort_values("chromosome", kind="stable", ignore_index=True)
    if not len(table):
        raise UserError(
            f"{where}: no variant lies on chromosomes 1-22; chromosomes must be named 1..22 or chr1..chr22 "
            "(others are excluded)"
        )
    multi = table[(table["alleles"] != 2) | (table["alt"] == ".")].assign(rank=-1, fate="multi_allelic")
    table = table.drop(multi.index).reset_index(drop=True)
    if not len(table):
        raise UserError(f"{where}: no site has two alleles; split multi-allelic ones with bcftools norm -m-")
    table["rank"] = table.groupby("chromosome").cumcount()
    differs = np.zeros(len(table), dtype=bool)
    if genome is not None:
        table["swapped"], differs = genome.orient(table)
    swapped = table["swapped"].to_numpy()
    table["ref"], table["alt"] = (
        np.where(swapped, table["alt"], table["ref"]),
        np.where(swapped, table["ref"], table["alt"]),
    )
    wrong = table[differs].assign(fate="reference_mismatch")
    excluded = pd.concat([multi, wrong], ignore_index=True)[[*COLUMNS, "fate"]]
    return table[~differs].reset_index(drop=True)[COLUMNS], excluded


def alt_is_reference(file: GenotypeFile, reference: str | None) -> bool:
    """Return whether the file's ``alt`` column holds the reference allele, as the user states it.

    Raises
    ------
    UserError
        Nothing is stated where it must be, or the word is of another format.
    """
    path, suffix = file.path, str(format_of(file.path))
    rules = RULES[suffix]
    if reference is None and (suffix == ".vcf" or (suffix == ".pgen" and not file.provisional)):
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
