"""From rows of a scoring file to variants of the genotypes: by position or rsID, then by alleles.

The rules are those of ``pgscatalog-match``, which the published evaluations use (plink2 ``--score`` compares only ids
and alleles as written). The report counts every outcome. Example: the genotypes have the variant 1:1000 with REF A and
ALT G.

==========================================  ====================  ==================================================
row: effect allele, other allele            fate                  reason
==========================================  ====================  ==================================================
G, A                                        ``matched``           alleles agree; the weight counts ALT
A, G                                        ``matched``           effect allele and other allele swapped: counts REF
C, T                                        ``matched_flipped``   the complement of both agrees (other strand)
G, not given                                ``matched``           a missing other allele agrees with anything ...
G, not given; also ALT of a second variant  ``several_fit``       ... unless several variants at the position fit
G, C                                        ``alleles_differ``    neither the alleles nor their complements agree
==========================================  ====================  ==================================================

- Strand-ambiguous variants (A/T, C/G) are ``ambiguous``: the alleles cannot show a strand flip. ``--ambiguous keep``
  uses these variants with the alleles as given, never flipped.
- A site with several alternative alleles on one line is ``multi_allelic``: copies of "not REF" are not copies of one
  allele.
- A second row for the same variant is a ``duplicate``: a sum would count the variant twice.
- A row without a variant at its position is ``absent``. A row with neither a position in the build nor an rsID has
  ``no_place``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from preprocess.genetics.genotypes.tables import X_CHROMOSOME
from preprocess.genetics.pgs.scoring_file import Score

COMPLEMENT = str.maketrans("ACGT", "TGCA")
FATES = (
    "matched",
    "matched_flipped",
    "ambiguous",
    "duplicate",
    "several_fit",
    "multi_allelic",
    "alleles_differ",
    "absent",
    "no_place",
)
MATCHED, FLIPPED, AMBIGUOUS, DUPLICATE, SEVERAL_FIT, MULTI_ALLELIC, ALLELES_DIFFER, ABSENT, NO_PLACE = range(len(FATES))
NOT_FOUND = -1  # no variant
UNKNOWN_ALLELE = -9  # the allele of no variant
# Minimum number of rsIDs (or positions) found before their mismatches count as evidence of another build.
LEAST_FOUND = 10
POSITIONS_CHECKED = 2_000


@dataclass(frozen=True)
class Matches:
    """The matched variant and the fate of each row of one score.

    Attributes
    ----------
    fate : ndarray of int8, shape (rows,)
        Index into ``FATES``.
    variant : ndarray of int64, shape (rows,)
        Row of the variant table; -1 where no variant matched.
    effect_is_alt : ndarray of bool, shape (rows,)
        Whether the weight counts copies of ALT (else of REF).
    counts : dict
        Counts of fates, and of matched rows ``by_position``, ``by_rsid``, ``effect_is_ref``.
    elsewhere, found_by_rsid : int
        `found_by_rsid` counts rows with a position whose rsID is in the genotypes; `elsewhere` counts those of them
        whose position differs in the genotypes.
    """

    fate: np.ndarray
    variant: np.ndarray
    effect_is_alt: np.ndarray
    counts: dict[str, int]
    elsewhere: int
    found_by_rsid: int

    @property
    def used(self) -> np.ndarray:
        """Which rows enter the score, shape (rows,), bool."""
        return self.fate <= FLIPPED

    @property
    def wrong_build(self) -> str:
        """Evidence that the genotypes are in another build than the score's positions; empty without evidence."""
        if self.found_by_rsid >= LEAST_FOUND and 2 * self.elsewhere > self.found_by_rsid:
            return f"{self.elsewhere} of {self.found_by_rsid} rsIDs have another position in the genotypes"
        differ = self.counts["alleles_differ"]
        at_position = differ + sum(
            self.counts[name] for name in ("matched", "matched_flipped", "ambiguous", "duplicate")
        )
        if at_position >= LEAST_FOUND and 2 * differ > at_position:
            return f"{differ} of {at_position} variants at its positions have other alleles"
        return ""


@dataclass(frozen=True)
class _Candidates:
    """The candidate variants of each row; several variants may share a position.

    Attributes
    ----------
    key : ndarray of int64, shape (rows,)
        Chromosome and position as one number (:func:`_position_key`); -1 without a position.
    first : ndarray of int64, shape (rows,)
        Index of the first variant at that position, in the index's order of positions.
    variant : ndarray of int64, shape (rows,)
        The first candidate, by position, or by rsID where the row has no position; -1 if there is none.
    by_rsid : ndarray of int64, shape (rows,)
        The variant with the row's rsID; searched for all rows without a position and for a sample of the others.
    """

    key: np.ndarray
    first: np.ndarray
    variant: np.ndarray
    by_rsid: np.ndarray


class VariantIndex:
    """Index of a variant table, built once for all scores.

    Parameters
    ----------
    variants : DataFrame
        With ``chromosome``, ``position``, ``id``, ``ref``, ``alt``.
    keep_ambiguous : bool
        Use strand-ambiguous variants with the alleles as given.
    autosomes_only : bool
        Exclude chromosome X.
    """

    def __init__(self, variants: pd.DataFrame, keep_ambiguous: bool = False, autosomes_only: bool = False) -> None:
        self.keep_ambiguous = keep_ambiguous
        chromosome = variants["chromosome"].to_numpy()
        self.usable = (chromosome > 0) & (chromosome <= (X_CHROMOSOME - 1 if autosomes_only else X_CHROMOSOME))
        self.key = _position_key(np.where(self.usable, chromosome, 0), variants["position"].to_numpy())
        # Stable: of several variants at one position the first in the file is tried first.
        self.order = np.argsort(self.key, kind="stable")
        self.sorted_key = self.key[self.order]
        # Equal alleles have equal codes: rows are compared by number, not by text.
        codes, distinct = pd.factorize(np.concatenate([variants["ref"].to_numpy(), variants["alt"].to_numpy()]))
        self.vocabulary = {str(allele): code for code, allele in enumerate(distinct)}
        self.ref, self.alt = codes[: len(variants)].astype(np.int32), codes[len(variants) :].astype(np.int32)
        complement = self._codes([str(allele).translate(COMPLEMENT) for allele in distinct])
        self.ambiguous = self.alt == complement[self.ref]
        self.multi_allelic = np.array(["," in str(allele) for allele in distinct], dtype=bool)[self.alt]
        numbers = _rsid_numbers(variants["id"])
        with_rsid = np.flatnonzero((numbers > 0) & self.usable)
        # Of duplicate IDs the first counts.
        self.sorted_rsid, first = np.unique(numbers[with_rsid], return_index=True)
        self.row_of_rsid = with_rsid[first]

    def match(self, score: Score) -> Matches:
        """Match the rows of one score."""
        candidates = self._candidates(score)
        fate, variant, effect_is_alt, fits = self._compare_alleles(score, candidates)
        unmatched = np.flatnonzero((candidates.variant >= 0) & (variant < 0))
        fate[unmatched[self.multi_allelic[candidates.variant[unmatched]]]] = MULTI_ALLELIC
        fate[(score.other < 0) & (fits > 1)] = SEVERAL_FIT
        if not self.keep_ambiguous:
            fate[(fate <= FLIPPED) & self.ambiguous[variant]] = AMBIGUOUS
        used = np.flatnonzero(fate <= FLIPPED)
        fate[used[_is_repeat(variant[used])]] = DUPLICATE
        elsewhere, found_by_rsid = self._positions_elsewhere(score, candidates)
        counts = _count(fate, score.position > 0, effect_is_alt)
        return Matches(fate, variant, effect_is_alt, counts, elsewhere, found_by_rsid)

    def _candidates(self, score: Score) -> _Candidates:
        """Find the candidate variants of each row: a position takes precedence over an rsID."""
        has_position = score.position > 0
        key = np.where(has_position, _position_key(score.chromosome, score.position), NOT_FOUND)
        first = np.searchsorted(self.sorted_key, key, "left")
        at_position = has_position & (key >= 0) & (self._key_at(first) == key)
        # Rows without a position are found by rsID; of the others a sample is enough to detect another build.
        searched = ~has_position
        searched[:: max(1, len(searched) // POSITIONS_CHECKED)] = True
        by_rsid = np.full(len(searched), NOT_FOUND, dtype=np.int64)
        by_rsid[searched] = self._by_rsid(score.rsid[searched])
        by_position = np.where(at_position, self.order[np.minimum(first, len(self.order) - 1)], NOT_FOUND)
        return _Candidates(key, first, np.where(has_position, by_position, by_rsid), by_rsid)

    def _compare_alleles(
        self, score: Score, candidates: _Candidates
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Compare every candidate of every row: the alleles as given first, then the complements.

        Returns
        -------
        fate, variant, effect_is_alt : ndarray, shape (rows,)
            As in :class:`Matches`.
        fits : ndarray of int8, shape (rows,)
            Number of candidates that agree.
        """
        rows = len(score.weight)
        has_position = score.position > 0
        fate = np.where(has_position | (score.rsid > 0), ABSENT, NO_PLACE).astype(np.int8)
        fate[candidates.variant >= 0] = ALLELES_DIFFER
        variant = np.full(rows, NOT_FOUND, dtype=np.int64)
        effect_is_alt = np.zeros(rows, dtype=bool)
        fits = np.zeros(rows, dtype=np.int8)
        complements = [allele.translate(COMPLEMENT) for allele in score.alleles]
        for flip, alleles in ((False, score.alleles), (True, complements)):
            codes = self._codes(alleles)
            todo = np.flatnonzero((candidates.variant >= 0) & (variant < 0))
            candidate, step = candidates.variant[todo], 0
            while len(todo):
                agrees, is_alt = self._agree(candidate, codes, score, todo)
                if flip:
                    agrees &= ~self.ambiguous[candidate]
                fits[todo[agrees]] += 1
                new = agrees & (variant[todo] < 0)
                variant[todo[new]], effect_is_alt[todo[new]] = candidate[new], is_alt[new]
                fate[todo[new]] = FLIPPED if flip else MATCHED
                # A multi-allelic site may be several variants at one position: the next one is the next candidate.
                step += 1
                more = has_position[todo] & (self._key_at(candidates.first[todo] + step) == candidates.key[todo])
                todo = todo[more]
                candidate = self.order[candidates.first[todo] + step]
        return fate, variant, effect_is_alt, fits

    def _agree(
        self, variant: np.ndarray, codes: np.ndarray, score: Score, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare the alleles of rows with those of variants; a missing other allele agrees with anything.

        Returns
        -------
        agrees, effect_is_alt : ndarray of bool, shape (rows,)
        """
        effect = codes[score.effect[rows]]
        unknown = score.other[rows] < 0
        other = codes[score.other[rows]]
        ref, alt = self.ref[variant], self.alt[variant]
        is_alt = (effect == alt) & (unknown | (other == ref))
        is_ref = (effect == ref) & (unknown | (other == alt)) & ~self.multi_allelic[variant]
        return is_alt | is_ref, is_alt

    def _positions_elsewhere(self, score: Score, candidates: _Candidates) -> tuple[int, int]:
        """Return the number of rows whose rsID has another position in the genotypes, and the number compared."""
        both = np.flatnonzero((score.position > 0) & (candidates.by_rsid >= 0))
        differs = self.key[candidates.by_rsid[both]] != candidates.key[both]
        return int(differs.sum()), len(both)

    def _codes(self, alleles: list[str]) -> np.ndarray:
        return np.array([self.vocabulary.get(allele, UNKNOWN_ALLELE) for allele in alleles], dtype=np.int32)

    def _key_at(self, index: np.ndarray) -> np.ndarray:
        """Return the sorted key at each index; -2, which no row has, beyond the last key."""
        last = len(self.sorted_key) - 1
        return np.where(index <= last, self.sorted_key[np.minimum(index, last)], -2)

    def _by_rsid(self, rsid: np.ndarray) -> np.ndarray:
        """Find variants by rsID number; -1 if no variant has the rsID."""
        if not len(self.sorted_rsid) or not rsid.any():
            return np.full(len(rsid), NOT_FOUND, dtype=np.int64)
        index = np.minimum(np.searchsorted(self.sorted_rsid, rsid), len(self.sorted_rsid) - 1)
        return np.where(self.sorted_rsid[index] == rsid, self.row_of_rsid[index], NOT_FOUND)


def _count(fate: np.ndarray, has_position: np.ndarray, effect_is_alt: np.ndarray) -> dict[str, int]:
    used = np.flatnonzero(fate <= FLIPPED)
    counts = {name: int(n) for name, n in zip(FATES, np.bincount(fate, minlength=len(FATES)), strict=True)}
    counts["by_position"] = int(has_position[used].sum())
    counts["by_rsid"] = len(used) - counts["by_position"]
    counts["effect_is_ref"] = int((~effect_is_alt[used]).sum())
    return counts


def _is_repeat(values: np.ndarray) -> np.ndarray:
    """Mark every repeated occurrence of a value: ``[5, 7, 5]`` is ``[False, False, True]``."""
    repeat = np.ones(len(values), dtype=bool)
    repeat[np.unique(values, return_index=True)[1]] = False
    return repeat


def _rsid_numbers(ids: pd.Series) -> np.ndarray:
    """Return the number of every rsID, int64; 0 for any other id, and for rsIDs of more than 18 digits."""
    return np.array(
        [
            int(name[2:]) if name[:2] == "rs" and name[2:].isdecimal() and len(name) <= 20 else 0
            for name in ids.to_numpy(object)
        ],
        np.int64,
    )


def _position_key(chromosome: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return a number that sorts by chromosome and position; -1 for chromosome 0."""
    return np.where(chromosome > 0, chromosome.astype(np.int64) << 32 | position, NOT_FOUND)
