"""From rows of a scoring file to variants of the genotypes: by place or rsID, then by alleles.

Rules, each counted (``pgscatalog-match``'s, which the published evaluations use, over plink2 ``--score``'s, which knows
ids and alleles as written and nothing else):

- Alleles must agree as given; else the complement of both may agree (a flip).
- Strand-ambiguous variants (A/T, C/G) are left out: nothing in the alleles could tell a flip. ``--ambiguous keep`` uses
  them as given, never flipped.
- A missing other allele agrees with anything, unless several variants at the place hold the effect allele.
- A site with several alternative alleles on one line is left out: copies of "not REF" are no copies of an allele.
- A second row on the same variant is left out: a sum would count it twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

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
# So many rsIDs (or places) must be found before they can speak against the build.
LEAST_FOUND = 10
PLACES_CHECKED = 2_000


@dataclass(frozen=True)
class Matches:
    """What became of the rows of one score.

    Attributes
    ----------
    fate : ndarray of int8, shape (rows,)
        Index into ``FATES``.
    variant : ndarray of int64, shape (rows,)
        Row of the variant table; -1 where no variant matched.
    effect_is_alt : ndarray of bool, shape (rows,)
        Whether the weight counts copies of ALT (else of REF).
    counts : dict
        Of fates, and of matched rows ``by_position``, ``by_rsid``, ``effect_is_ref``.
    elsewhere, found_by_rsid : int
        Placed rows whose rsID the genotypes hold, and how many of those stand at another position there.
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
        """Why the genotypes seem to be in another build than the positions; empty if they do not."""
        if self.found_by_rsid >= LEAST_FOUND and 2 * self.elsewhere > self.found_by_rsid:
            return f"{self.elsewhere} of {self.found_by_rsid} rsIDs stand elsewhere in the genotypes"
        differ = self.counts["alleles_differ"]
        found = differ + sum(self.counts[name] for name in ("matched", "matched_flipped", "ambiguous", "duplicate"))
        if found >= LEAST_FOUND and 2 * differ > found:
            return f"{differ} of {found} variants at its positions have other alleles"
        return ""


class VariantIndex:
    """Look-ups in a variant table, built once for all scores.

    Parameters
    ----------
    variants : DataFrame
        With ``chromosome``, ``position``, ``id``, ``ref``, ``alt``.
    keep_ambiguous : bool
        Use strand-ambiguous variants as given.
    autosomes_only : bool
        Leave chromosome X out.
    """

    def __init__(self, variants: pd.DataFrame, keep_ambiguous: bool = False, autosomes_only: bool = False) -> None:
        self.keep_ambiguous = keep_ambiguous
        chromosome = variants["chromosome"].to_numpy()
        self.usable = (chromosome > 0) & (chromosome <= (22 if autosomes_only else 23))
        self.place = _place(np.where(self.usable, chromosome, 0), variants["position"].to_numpy())
        # Stable, so that of several variants at one place the first in the file is tried first.
        self.order = np.argsort(self.place, kind="stable")
        self.sorted_place = self.place[self.order]
        codes, distinct = pd.factorize(np.concatenate([variants["ref"].to_numpy(), variants["alt"].to_numpy()]))
        self.vocabulary = {str(allele): code for code, allele in enumerate(distinct)}
        self.ref, self.alt = codes[: len(variants)].astype(np.int32), codes[len(variants) :].astype(np.int32)
        flipped = self._codes([str(allele).translate(COMPLEMENT) for allele in distinct])
        self.ambiguous = self.alt == flipped[self.ref]
        self.multi = np.array(["," in str(allele) for allele in distinct], dtype=bool)[self.alt]
        numbers = _rsid_numbers(variants["id"])
        by_id = np.flatnonzero((numbers > 0) & self.usable)
        # Of repeated ids the first counts.
        self.sorted_rsid, first = np.unique(numbers[by_id], return_index=True)
        self.row_of_rsid = by_id[first]

    def match(self, score: Score) -> Matches:
        """Match the rows of one score."""
        placed = score.position > 0
        wanted = np.where(placed, _place(score.chromosome, score.position), -1)
        left = np.searchsorted(self.sorted_place, wanted, "left")
        rows = len(score.weight)
        # rsIDs find rows without a place; of the others a sample is enough to tell another build.
        asked = ~placed
        asked[:: max(1, rows // PLACES_CHECKED)] = True
        by_id = np.full(rows, -1, dtype=np.int64)
        by_id[asked] = self._by_rsid(score.rsid[asked])
        at_place = placed & (wanted >= 0) & (self._sorted(left) == wanted)
        candidate = np.where(placed, np.where(at_place, self.order[np.minimum(left, len(self.order) - 1)], -1), by_id)

        fate = np.where(placed | (score.rsid > 0), ABSENT, NO_PLACE).astype(np.int8)
        fate[candidate >= 0] = ALLELES_DIFFER
        variant = np.full(rows, -1, dtype=np.int64)
        effect_is_alt = np.zeros(rows, dtype=bool)
        as_given = self._codes(score.alleles)
        flipped = self._codes([allele.translate(COMPLEMENT) for allele in score.alleles])
        fits = np.zeros(rows, dtype=np.int8)
        for flip, codes in ((False, as_given), (True, flipped)):
            todo = np.flatnonzero((candidate >= 0) & (variant < 0))
            found, step = candidate[todo], 0
            while len(todo):
                agrees, is_alt = self._agree(found, codes, score, todo)
                if flip:
                    agrees &= ~self.ambiguous[found]
                hit, new = todo[agrees], variant[todo[agrees]] < 0
                fits[hit] += 1
                variant[hit[new]] = found[agrees][new]
                effect_is_alt[hit[new]] = is_alt[agrees][new]
                fate[hit[new]] = FLIPPED if flip else MATCHED
                # Multi-allelic sites stand as several variants at one position: try the next one there.
                step += 1
                more = placed[todo] & (self._sorted(left[todo] + step) == wanted[todo])
                todo = todo[more]
                found = self.order[left[todo] + step]
        multi = (candidate >= 0) & (variant < 0)
        fate[np.flatnonzero(multi)[self.multi[candidate[multi]]]] = MULTI_ALLELIC
        fate[(score.other < 0) & (fits > 1)] = SEVERAL_FIT
        if not self.keep_ambiguous:
            fate[(fate <= FLIPPED) & self.ambiguous[variant]] = AMBIGUOUS
        used = np.flatnonzero(fate <= FLIPPED)
        fate[used[_repeats(variant[used])]] = DUPLICATE
        used = np.flatnonzero(fate <= FLIPPED)
        counts = {name: int(n) for name, n in zip(FATES, np.bincount(fate, minlength=len(FATES)), strict=True)}
        counts["by_position"] = int(placed[used].sum())
        counts["by_rsid"] = len(used) - counts["by_position"]
        counts["effect_is_ref"] = int((~effect_is_alt[used]).sum())
        both = np.flatnonzero(placed & (by_id >= 0))
        elsewhere = int((self.place[by_id[both]] != wanted[both]).sum())
        return Matches(fate, variant, effect_is_alt, counts, elsewhere, len(both))

    def _codes(self, alleles: list[str]) -> np.ndarray:
        return np.array([self.vocabulary.get(allele, -9) for allele in alleles], dtype=np.int32)

    def _sorted(self, where: np.ndarray) -> np.ndarray:
        return np.where(
            where < len(self.sorted_place), self.sorted_place[np.minimum(where, len(self.sorted_place) - 1)], -2
        )

    def _by_rsid(self, rsid: np.ndarray) -> np.ndarray:
        """Find variants by rsID; -1 where there is none."""
        if not len(self.sorted_rsid) or not rsid.any():
            return np.full(len(rsid), -1, dtype=np.int64)
        where = np.minimum(np.searchsorted(self.sorted_rsid, rsid), len(self.sorted_rsid) - 1)
        return np.where(self.sorted_rsid[where] == rsid, self.row_of_rsid[where], -1)

    def _agree(
        self, variant: np.ndarray, codes: np.ndarray, score: Score, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare alleles; a missing `other` agrees with anything."""
        effect = codes[score.effect[rows]]
        unknown = score.other[rows] < 0
        other = codes[score.other[rows]]
        ref, alt = self.ref[variant], self.alt[variant]
        is_alt = (effect == alt) & (unknown | (other == ref))
        is_ref = (effect == ref) & (unknown | (other == alt)) & ~self.multi[variant]
        return is_alt | is_ref, is_alt


def _repeats(values: np.ndarray) -> np.ndarray:
    """Mark every occurrence of a value but its first."""
    repeated = np.ones(len(values), dtype=bool)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated


def _rsid_numbers(ids: pd.Series) -> np.ndarray:
    """Return the number of every id that is an rsID, else 0; int64, so a name of more than 18 digits is none."""
    return np.array(
        [
            int(name[2:]) if name[:2] == "rs" and name[2:].isdecimal() and len(name) <= 20 else 0
            for name in ids.to_numpy(object)
        ],
        np.int64,
    )


def _place(chromosome: np.ndarray, position: np.ndarray) -> np.ndarray:
    """One number per place; chromosome 0 gets none that a variant could have."""
    return np.where(chromosome > 0, chromosome.astype(np.int64) << 32 | position, -1)
