"""The reference allele of each variant: stated by the user or read from a FASTA file, never guessed.

:func:`orient` orders the alleles of a cohort: ``snps`` counts copies of the allele that differs from the reference.

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
from preprocess.genetics.genotypes.tables import NO_ALLELES, X_CHROMOSOME, is_sequence

# --reference of each format -> whether the file's `alt` column is the reference allele.
RULES = {
    ".bed": {"a2": False, "a1": True},
    ".pgen": {"ref": False, "alt": True},
    ".bgen": {"ref-first": False, "ref-last": True},
    ".vcf": {"ref": False, "alt": True},
}
NAMES = ("a1", "a2", "ref", "alt", "ref-first", "ref-last")
HELP = {
    ".bed": "state the .bim column of the reference allele: a2 (column 6, as plink2 --make-bed writes "
    "it) or a1 (column 5); plink 1.9 writes the minor allele as A1 regardless of the reference: use --fasta for such "
    "files",
    ".pgen": "REF is provisional in the .pvar (INFO PR: taken from A2 of a .bed); state ref or alt, or use --fasta",
    ".bgen": "state the reference allele: ref-first (raw UK Biobank) or ref-last (default of plink2 --export "
    "bgen-1.x), or use --fasta",
}
# A larger share of mismatching variants means that the FASTA and the positions have different builds.
MOST_MISMATCHES = 0.2
EXCLUDED = ("filtered", "multi_allelic", "no_sequence", "reference_mismatch")
COLUMNS = ["file", "column", "chromosome", "rank", "id", "position", "ref", "alt", "swapped"]


@dataclass(frozen=True)
class Oriented:
    """Autosomal, bi-allelic variants whose reference allele is known.

    Attributes
    ----------
    genotypes : Genotypes
        ``variants`` by chromosome, then file order: ``file``, ``column``, ``chromosome`` (1..22), ``rank`` (index among
        the chromosome's bi-allelic variants, including variants that the FASTA excludes), ``id``, ``position``,
        ``ref``, ``alt``, ``swapped`` (bool: the file calls ``ref`` its ``alt``). Calls are copies of ``alt``.
    excluded : DataFrame
        Excluded autosomal variants: the same columns and ``fate``, one of ``EXCLUDED``.
    counts : dict
        ``variants`` (in the files), ``variants_not_autosomal``, ``variants_FATE`` for every fate of ``EXCLUDED``,
        ``variants_swapped``, ``variants_reference_provisional``.
    """

    genotypes: Genotypes
    excluded: pd.DataFrame
    counts: dict[str, int]


def orient(genotypes: Genotypes, reference: str | None = None, fasta: Path | None = None) -> Oriented:
    """Order the alleles of every variant by the reference genome.

    These variants are excluded and counted: variants outside the autosomes, variants that FILTER excludes, sites with
    more than two alleles (``bcftools norm -m-`` splits such sites) or one (ALT ``.``), alleles without a sequence
    (``*``, ``<DEL>``), and variants without an allele that matches the FASTA. Variants with duplicate IDs stay in the
    table; the caller decides.

    See docs/genetics-pitfalls.md#chromosome-codes.

    Parameters
    ----------
    genotypes : Genotypes
    reference : str, optional
        The reference allele: ``a1`` or ``a2`` (.bed), ``ref`` or ``alt`` (.pgen, VCF; ``ref`` by default),
        ``ref-first`` or ``ref-last`` (.bgen).
    fasta : path, optional
        Reference genome; decides the reference allele variant by variant.

    Raises
    ------
    UserError
        The reference allele is not stated, no variant is usable, or the FASTA has another build.
    """
    if fasta is not None and reference is not None:
        raise UserError("--reference and --fasta exclude each other: the FASTA decides variant by variant; remove one")
    files, table = genotypes.files, genotypes.variants
    swapped = [fasta is None and alt_is_reference(file, reference) for file in files]
    table = table.assign(swapped=np.array(swapped)[table["file"].to_numpy()])
    variants, excluded = _usable(table, None if fasta is None else ReferenceGenome(fasta), files[0].path)
    fates = excluded["fate"].value_counts()
    chromosome = genotypes.variants["chromosome"].to_numpy()
    counts = {
        "variants": len(table),
        "variants_not_autosomal": int(((chromosome == 0) | (chromosome == X_CHROMOSOME)).sum()),
        **{f"variants_{fate}": int(fates.get(fate, 0)) for fate in EXCLUDED},
        "variants_swapped": int(variants["swapped"].sum()),
        "variants_reference_provisional": 0 if fasta is not None else sum(file.provisional for file in files),
    }
    return Oriented(replace(genotypes, variants=variants), excluded, counts)


def _usable(table: pd.DataFrame, genome: ReferenceGenome | None, path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the ranked usable variants with ordered alleles, and the excluded variants; `path` is for messages."""
    autosomal = (table["chromosome"] > 0) & (table["chromosome"] < X_CHROMOSOME)
    table = table[autosomal].sort_values("chromosome", kind="stable", ignore_index=True)
    if not len(table):
        raise UserError(
            f"{path}: no variant lies on chromosomes 1-22; chromosomes must be named 1..22 or chr1..chr22 "
            "(others are excluded)"
        )
    sequence = np.logical_and(*(table[name].map(is_sequence).to_numpy(bool) for name in ("ref", "alt")))
    other_count = (table["alleles"] != 2) | (table["alt"] == ".")
    conditions = [~table["passes"].to_numpy(), other_count.to_numpy(), ~sequence]
    fate = np.select(conditions, list(EXCLUDED[:3]), "")
    excluded = table[fate != ""].assign(rank=-1, fate=fate[fate != ""])
    table = table[fate == ""].reset_index(drop=True)
    if not len(table):
        reasons = ", ".join(f"{count} {name}" for name, count in excluded["fate"].value_counts().items())
        raise UserError(
            f"{path}: no variant has two alleles ({reasons}); split multi-allelic sites with bcftools norm -m-, or "
            "use --all-filters"
        )
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
    excluded = pd.concat([excluded, wrong], ignore_index=True)[[*COLUMNS, "fate"]]
    return table[~differs].reset_index(drop=True)[COLUMNS], excluded


def alt_is_reference(file: GenotypeFile, reference: str | None) -> bool:
    """Return whether the file's ``alt`` column holds the reference allele, as stated by the user.

    Raises
    ------
    UserError
        The required statement is missing, or it belongs to another format.
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
        Plain or bgzip; the .fai index is written beside the file if it does not exist.

    Raises
    ------
    UserError
        The file is absent or is not a FASTA file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise UserError(f"--fasta {path}: does not exist; give the reference genome of the positions")
        from pyfaidx import Fasta, FastaIndexingError  # imported on use: only --fasta needs it

        try:
            self.fasta: Any = Fasta(str(path), as_raw=True, sequence_always_upper=True)
        except (FastaIndexingError, ValueError, OSError, UnicodeDecodeError, ImportError) as error:
            raise UserError(
                f"--fasta {path}: cannot be indexed ({type(error).__name__}); give FASTA, plain or bgzip, "
                "in a folder that can be written or with its .fai"
            ) from error

    def orient(self, variants: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Compare alleles with the genome.

        If both alleles match (an insertion or deletion in a repeat), the longer allele is the reference.

        Parameters
        ----------
        variants : DataFrame
            With ``chromosome`` (1..22), ``position``, ``ref``, ``alt``.

        Returns
        -------
        swapped : ndarray of bool, shape (variants,)
            ``alt`` is the reference.
        differs : ndarray of bool, shape (variants,)
            Neither allele is the reference: another build, another strand, or an unknown allele.

        Raises
        ------
        UserError
            A chromosome is absent, or so many alleles differ that the build must be different.
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
        # PLINK 1 names no allele (0) that its samples lack; if that is the reference, the other never matches.
        known = differs[~variants[["ref", "alt"]].isin(NO_ALLELES).any(axis=1).to_numpy()]
        if known.sum() > MOST_MISMATCHES * len(known):
            raise UserError(
                f"--fasta {self.path}: {int(known.sum())} of {len(known)} variants do not match it: "
                "the positions are of another build, or the alleles of the other strand; give the matching FASTA"
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
