"""What matching a score gives: the fate of every row, the variants it uses, and evidence of another build."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
# Minimum number of rsIDs (or positions) found before their mismatches count as evidence of another build.
LEAST_FOUND = 10


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
    at_position, differ : int
        Rows at the position of a variant with two known alleles, and those of them with other alleles.
    elsewhere, found_by_rsid : int
        `found_by_rsid` counts rows with a position whose rsID is in the genotypes; `elsewhere` counts those of them
        whose position differs in the genotypes.
    """

    fate: np.ndarray
    variant: np.ndarray
    effect_is_alt: np.ndarray
    counts: dict[str, int]
    at_position: int
    differ: int
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
        if self.at_position >= LEAST_FOUND and 2 * self.differ > self.at_position:
            return f"{self.differ} of {self.at_position} variants at its positions have other alleles"
        return ""
