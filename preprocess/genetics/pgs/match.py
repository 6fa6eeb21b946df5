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
- A variant with one known allele (ALT ``.``, or ``0`` in a .bim: no sample has the other allele) is matched by the
  allele that is known. It is no evidence for or against a build. A row whose alleles are complements is ``ambiguous``.
- Variants that FILTER excludes, and alleles without a sequence (``*``, ``<DEL>``), are ``absent``.
- A second row for the same variant is a ``duplicate``: a sum would count the variant twice.
- A row without a variant at its position is ``absent``. A row with neither a position in the build nor an rsID has
  ``no_place``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from preprocess.genetics.genotypes.tables import NO_ALLELES, X_CHROMOSOME, is_sequence
from preprocess.genetics.pgs.matches import (
    ABSENT,
    ALLELES_DIFFER,
    AMBIGUOUS,
    DUPLICATE,
    FATES,
    FLIPPED,
    MATCHED,
    MULTI_ALLELIC,
    NO_PLACE,
    SEVERAL_FIT,
    Matches,
)
from preprocess.genetics.pgs.scoring_file import Score

COMPLEMENT = str.maketrans("ACGT", "TGCA")
NOT_FOUND = -1  # no variant
UNKNOWN_ALLELE = -9  # the allele of no variant
POSITIONS_CHECKED = 2_000


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
        With ``chromosome``, ``position``, ``id``, ``ref``, ``alt``, and perhaps ``passes`` (all pass by default).
    keep_ambiguous : bool
        Use strand-ambiguous variants with the alleles as given.
    autosomes_only : bool
        Exclude chromosome X.
    """

    def __init__(self, variants: pd.DataFrame, keep_ambiguous: bool = False, autosomes_only: bool = False) -> None:
        self.keep_ambiguous = keep_ambiguous
        chromosome = variants["chromosome"].to_numpy()
        self.scored = (chromosome > 0) & (chromosome <= (X_CHROMOSOME - 1 if autosomes_only else X_CHROMOSOME))
        # Equal alleles have equal codes: rows are compared by number, not by text.
        codes, distinct = pd.factorize(np.concatenate([variants["ref"].to_numpy(), variants["alt"].to_numpy()]))
        self.ref, self.alt = codes[: len(variants)].astype(np.int32), codes[len(variants) :].astype(np.int32)
        has_sequence = np.array(["," in allele or is_sequence(allele) for allele in distinct], dtype=bool)
        self.has_sequence = has_sequence[self.ref] & has_sequence[self.alt]
        self.passes = variants["passes"].to_numpy(bool) if "passes" in variants else np.ones(len(variants), dtype=bool)
        self.usable = self.scored & self.passes & self.has_sequence
        self.key = _position_key(np.where(self.usable, chromosome, 0), variants["position"].to_numpy())
        self.vocabulary = {str(allele): code for code, allele in enumerate(distinct)}
        unnamed = self._codes(list(NO_ALLELES))
        self.no_ref, self.no_alt = np.isin(self.ref, unnamed), np.isin(self.alt, unnamed)
        self.one_allele = self.no_ref | self.no_alt
        # Of several variants at one position those with two alleles are tried first, in the order of the file.
        self.order = np.lexsort((self.one_allele, self.key))
        self.sorted_key = self.key[self.order]
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
            ambiguous = self.ambiguous[variant] | (self.one_allele[variant] & _alleles_are_complements(score))
            fate[(fate <= FLIPPED) & ambiguous] = AMBIGUOUS
        used = np.flatnonzero(fate <= FLIPPED)
        fate[used[_is_repeat(variant[used])]] = DUPLICATE
        elsewhere, found_by_rsid = self._positions_elsewhere(score, candidates)
        counts = _count(fate, score.position > 0, effect_is_alt)
        # Any score agrees with a variant of one known allele, whatever its build.
        both_known = ~self.one_allele[np.where(variant >= 0, variant, candidates.variant)]
        differ = int((both_known & (fate == ALLELES_DIFFER)).sum())
        agree = int((both_known & np.isin(fate, (MATCHED, FLIPPED, AMBIGUOUS, DUPLICATE))).sum())
        return Matches(fate, variant, effect_is_alt, counts, differ + agree, differ, elsewhere, found_by_rsid)

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
                    # The other strand of a lone allele may be the allele that no sample has.
                    agrees &= ~self.ambiguous[candidate] & ~(self.one_allele[candidate] & (score.other[todo] < 0))
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
        no_ref, no_alt = self.no_ref[variant], self.no_alt[variant]
        if not (no_ref.any() or no_alt.any()):
            return is_alt | is_ref, is_alt
        # The allele that is known decides: the row's other allele is the one that no sample has.
        differ = unknown | (effect != other)
        is_alt |= differ & ((no_ref & (effect == alt)) | (no_alt & ~unknown & (other == ref)))
        is_ref |= differ & ((no_alt & (effect == ref)) | (no_ref & ~unknown & (other == alt)))
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


def _alleles_are_complements(score: Score) -> np.ndarray:
    """Mark the rows whose alleles are complements of each other (A/T, C/G)."""
    index_of = {allele: index for index, allele in enumerate(score.alleles)}
    complement = [index_of.get(allele.translate(COMPLEMENT), UNKNOWN_ALLELE) for allele in score.alleles]
    return np.array(complement, dtype=np.int32)[score.effect] == score.other


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
