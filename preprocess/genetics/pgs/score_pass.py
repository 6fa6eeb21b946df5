"""All scores in one pass over the genotypes: a blocked product, weights x dosages, dense or sparse, summed in float64.

Score of a participant: the sum over matched rows of weight x copies of the effect allele. Copies of REF are 2 - copies
of ALT, so a weight on REF enters as -w per ALT copy and a constant +2w; scores with opposite effect alleles share one
product. A missing call counts 2 x the effect allele's frequency, as ``plink2 --score`` does,
with the frequency of the training split (plink2: of the samples loaded); where nobody there has a call it counts 0.

float32 products would be twice as fast and are 1e-3 off on sums of 400.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from preprocess.genetics.genotypes.dosages import Genotypes
from preprocess.genetics.pgs import sparse_product

COLUMNS_PER_PRODUCT = 4096
MOST_VARIANTS_PER_BLOCK = 2048


@dataclass(frozen=True)
class Weights:
    """Matched weights of all scores.

    Attributes
    ----------
    variant : list of ndarray of int32
        For each score the variant rows it uses, ascending, each once.
    weight : list of ndarray of float64
        Per copy of ALT.
    effect_is_alt : list of ndarray of bool
    constant : list of float
        Twice the sum of the weights whose effect allele is REF.
    """

    variant: list[np.ndarray] = field(default_factory=list)
    weight: list[np.ndarray] = field(default_factory=list)
    effect_is_alt: list[np.ndarray] = field(default_factory=list)
    constant: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.constant)

    def add(self, variant: np.ndarray, weight: np.ndarray, effect_is_alt: np.ndarray) -> None:
        """Append a score.

        Parameters
        ----------
        variant : ndarray of int, shape (rows,)
            Variant rows, each once, in any order.
        weight : ndarray of float64, shape (rows,)
            Per copy of the effect allele.
        effect_is_alt : ndarray of bool, shape (rows,)
        """
        signed = np.where(effect_is_alt, weight, -weight)
        if len(variant) and (np.diff(variant) <= 0).any():
            order = np.argsort(variant, kind="stable")
            assert (np.diff(variant[order]) > 0).all(), "a score uses a variant twice"
            variant, signed, effect_is_alt = variant[order], signed[order], effect_is_alt[order]
        self.variant.append(variant.astype(np.int32))
        self.weight.append(signed)
        self.effect_is_alt.append(effect_is_alt)
        self.constant.append(float(-2 * signed[~effect_is_alt].sum()))

    def variants(self, total: int) -> np.ndarray:
        """Return the rows that any score uses, of `total`, ascending."""
        used = np.zeros(total, dtype=bool)
        for rows in self.variant:
            used[rows] = True
        return np.flatnonzero(used)


@dataclass
class ScorePass:
    """One pass over genotypes; participants come in as many blocks as `memory` needs.

    Parameters
    ----------
    genotypes : Genotypes
    weights : Weights
    train : ndarray of bool, shape (participants,)
        Whose allele frequencies replace missing calls.
    hard_calls : bool
        Score hard calls instead of dosages.
    memory : int
        Bytes that sums and blocks may take together; weights come on top (13 bytes a matched row).

    Attributes
    ----------
    expected : ndarray of float64, shape (variants used,)
        Mean copies of ALT in the training split; 0 where nobody there has a call.
    never : int
        Number of those variants.
    missing : int
        Missing values met, all participants.
    """

    genotypes: Genotypes
    weights: Weights
    train: np.ndarray
    hard_calls: bool = False
    memory: int = 2 << 30
    never: int = 0
    missing: int = 0

    def __post_init__(self) -> None:
        self.variants = self.weights.variants(len(self.genotypes.variants))
        self.expected = np.zeros(len(self.variants))
        people, scores = len(self.train), max(1, len(self.weights))
        # A third for the sums, a quarter for values read, an eighth each for whole rows and float64 slices.
        per_block = max(COLUMNS_PER_PRODUCT, self.memory // 3 // (8 * scores))
        parts = -(-people // per_block)
        self.participants_per_block = -(-people // parts)
        bytes_per_value = 1 if self.hard_calls else 4
        room = self.memory // 4 // (bytes_per_value * self.participants_per_block)
        room = min(room, self.memory // 8 // (8 * min(COLUMNS_PER_PRODUCT, people)))
        self.variants_per_block = int(np.clip(room, 16, MOST_VARIANTS_PER_BLOCK))

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (participants, sums): float64 of shape (participants, scores), raw units."""
        starts = range(0, len(self.train), self.participants_per_block)
        bar = tqdm(total=len(self.variants) * len(starts), desc="pgs: score", unit="variant", disable=None)
        with bar:
            for start in starts:
                people = slice(start, min(start + self.participants_per_block, len(self.train)))
                yield people, self._sum(people, bar)

    def _sum(self, people: slice, bar: tqdm) -> np.ndarray:
        rows = None if people == slice(0, len(self.train)) else np.arange(people.start, people.stop)
        sums = np.zeros((len(self.weights), people.stop - people.start))
        wide = min(COLUMNS_PER_PRODUCT, sums.shape[1])
        copies = np.empty((self.variants_per_block, wide))
        bounds = np.append(np.arange(0, len(self.variants), self.variants_per_block), len(self.variants))
        edges = np.append(self.variants, len(self.genotypes.variants))[bounds]
        # Where each score's rows of each block begin.
        cuts = np.array([np.searchsorted(rows_of, edges) for rows_of in self.weights.variant])
        for number, (first, last) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            where, block = slice(first, last), self.variants[first:last]
            if rows is not None and not people.start:
                values = self._read_and_fit(where, people, copies)
            else:
                values = self._read(block, rows)
            active = np.flatnonzero(cuts[:, number + 1] > cuts[:, number])
            if rows is None:
                self._fit(values, where, copies)
            if sparse_product.takes(values) and self._is_sparse(active, cuts[:, number : number + 2], block):
                self.missing += self._add_sparse(active, cuts[:, number : number + 2], block, values, where, sums)
                bar.update(len(block))
                continue
            weights = self._dense(active, cuts[:, number : number + 2], block)
            for left in range(0, values.shape[1], wide):
                filled, missing = self._load(values[:, left : left + wide], copies)
                filled[missing] = self.expected[where][missing[0]]
                self.missing += len(missing[0])
                product = weights @ filled
                if len(active) == len(sums):
                    sums[:, left : left + wide] += product
                else:
                    sums[active, left : left + wide] += product
            bar.update(len(block))
        sums += np.array(self.weights.constant)[:, None]
        return sums.T

    @staticmethod
    def _is_sparse(active: np.ndarray, cuts: np.ndarray, block: np.ndarray) -> bool:
        """Whether few of a block's weights are not zero."""
        share = np.diff(cuts[active]).sum() / max(1, len(active) * len(block))
        return bool(share <= sparse_product.MOST_DENSE)

    def _add_sparse(
        self,
        active: np.ndarray,
        cuts: np.ndarray,
        block: np.ndarray,
        values: np.ndarray,
        where: slice,
        sums: np.ndarray,
    ) -> int:
        """Add one block's products; return how many values were missing."""
        pieces = [slice(*cuts[score]) for score in active.tolist()]
        variant, weight = (
            np.concatenate([column[score][piece] for score, piece in zip(active.tolist(), pieces, strict=True)])
            for column in (self.weights.variant, self.weights.weight)
        )
        begin = np.append(0, np.cumsum(np.diff(cuts[active])))
        places = np.searchsorted(block, variant)
        return sparse_product.add(values, self.expected[where], active, begin, places, weight, sums)

    def _dense(self, active: np.ndarray, cuts: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Lay out one block's weights, shape (active scores, variants)."""
        weights = np.zeros((len(active), len(block)))
        contiguous = block[-1] - block[0] == len(block) - 1
        for row, score in enumerate(active.tolist()):
            low, high = cuts[score]
            variant = self.weights.variant[score][low:high]
            where = variant - block[0] if contiguous else np.searchsorted(block, variant)
            weights[row, where] = self.weights.weight[score][low:high]
        return weights

    @staticmethod
    def _load(part: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Convert to float64 with 0 for missing, negative or NaN: unmasked it would ruin the product.

        See docs/genetics-pitfalls.md#missing-codes.

        Returns
        -------
        filled : ndarray of float64
            A view of `copies`, of the shape of `part`.
        missing : (ndarray, ndarray) of int64
            Rows and columns.
        """
        filled = copies[: part.shape[0], : part.shape[1]]
        np.copyto(filled, part)
        missing = np.nonzero(~(part >= 0))
        filled[missing] = 0
        return filled, missing

    def _read(self, variants: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        read = self.genotypes.hard_calls if self.hard_calls else self.genotypes.dosages
        return read(variants, rows)

    def _fit(self, values: np.ndarray, where: slice, copies: np.ndarray) -> None:
        """Fit the mean copies in the training split from whole rows, shape (variants, participants)."""
        if sparse_product.takes(values):
            total, known = sparse_product.fit(values, self.train)
        else:
            total, known = self._fit_plainly(values, copies)
        self.never += int((known == 0).sum())
        self.expected[where] = total / np.maximum(known, 1)

    def _fit_plainly(self, values: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :func:`.sparse_product.fit`."""
        total, known = np.zeros(len(values)), np.full(len(values), int(self.train.sum()))
        for left in range(0, values.shape[1], copies.shape[1]):
            filled, missing = self._load(values[:, left : left + copies.shape[1]], copies)
            train = self.train[left : left + copies.shape[1]]
            total += filled @ train.astype(np.float64)
            known -= np.bincount(missing[0][train[missing[1]]], minlength=len(values))
        return total, known

    def _read_and_fit(self, where: slice, people: slice, copies: np.ndarray) -> np.ndarray:
        """Read whole rows, a few at a time, fit on them and keep the first participants."""
        step = max(1, self.memory // 8 // (4 * len(self.train)))
        parts = []
        for start in range(where.start, where.stop, step):
            piece = slice(start, min(start + step, where.stop))
            values = self._read(self.variants[piece], None)
            self._fit(values, piece, copies)
            parts.append(values[:, people].copy())
        return np.concatenate(parts)
