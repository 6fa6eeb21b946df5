"""All scores in one pass over the genotypes: a blocked product, weights x dosages, dense or sparse, summed in float64.

The score of a participant is the sum over matched rows of weight x copies of the effect allele. Example: a score has
weight 0.5 on G and weight 2 on A, where the genotypes have G and A as ALT and as REF of two variants, and a participant
has 1 copy of each ALT: 0.5 x 1 + 2 x (2 - 1) = 2.5.

- Copies of REF are 2 - copies of ALT, so a weight w on REF enters as -w per ALT copy and a constant +2w: here
  0.5 x 1 - 2 x 1 + 4. Scores with opposite effect alleles share one product.
- A missing call counts 2 x the effect allele frequency, as in ``plink2 --score``. The frequency is that of the training
  split (plink2: of the samples loaded). If no training participant has a call, a missing call counts 0.

  See docs/genetics-pitfalls.md#effect-allele-is-the-reference.

float32 products are twice as fast, but their error is 1e-3 on sums of 400.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from mrmfast.arithmetic import ceil_div
from preprocess.genetics.genotypes import Genotypes
from preprocess.genetics.pgs import sparse_product

COLUMNS_PER_PRODUCT = 4096
LEAST_VARIANTS_PER_BLOCK, MOST_VARIANTS_PER_BLOCK = 16, 2048


@dataclass(frozen=True)
class Weights:
    """Matched weights of all scores.

    Attributes
    ----------
    variant : list of ndarray of int32
        Variant rows of each score, ascending and distinct.
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
            Variant rows, distinct, in any order.
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
        """Return the variant rows that any score uses, ascending; `total` is the number of variants."""
        used = np.zeros(total, dtype=bool)
        for rows in self.variant:
            used[rows] = True
        return np.flatnonzero(used)


@dataclass(frozen=True)
class _Block:
    """A block of consecutive variants and its weights.

    Attributes
    ----------
    span : slice
        Indices among the variants that any score uses.
    variants : ndarray of int64, shape (n,)
        Rows of these variants in the genotypes.
    scores : ndarray of int64, shape (k,)
        Scores with a weight in the block.
    cuts : ndarray of int64, shape (all scores, 2)
        The weights ``cuts[s, 0]:cuts[s, 1]`` of score s belong to the block.
    """

    span: slice
    variants: np.ndarray
    scores: np.ndarray
    cuts: np.ndarray

    def __len__(self) -> int:
        return len(self.variants)

    @property
    def is_sparse(self) -> bool:
        """Whether only a small share of the weights, scores x variants, is non-zero."""
        weights = np.diff(self.cuts[self.scores]).sum()
        return bool(weights / max(1, len(self.scores) * len(self)) <= sparse_product.MOST_DENSE)


@dataclass
class ScorePass:
    """One pass over the genotypes; `memory` determines the number of participant blocks.

    Parameters
    ----------
    genotypes : Genotypes
    weights : Weights
    train : ndarray of bool, shape (participants,)
        Training participants; their allele frequencies replace missing calls.
    hard_calls : bool
        Score hard calls instead of dosages.
    memory : int
        Maximum size of sums and blocks together, in bytes; the weights take 13 more bytes per matched row.

    Attributes
    ----------
    expected : ndarray of float64, shape (variants used,)
        Mean copies of ALT in the training split, 2 x the allele frequency; 0 without any call in the training split.
    never : int
        Number of variants without any call in the training split.
    missing : int
        Number of missing values of all participants.
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
        self.participants_per_block = ceil_div(people, ceil_div(people, per_block))
        bytes_per_value = 1 if self.hard_calls else 4
        fitting = self.memory // 4 // (bytes_per_value * self.participants_per_block)
        fitting = min(fitting, self.memory // 8 // (8 * min(COLUMNS_PER_PRODUCT, people)))
        self.variants_per_block = int(np.clip(fitting, LEAST_VARIANTS_PER_BLOCK, MOST_VARIANTS_PER_BLOCK))

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (participants, sums): float64 of shape (participants, scores), raw units."""
        starts = range(0, len(self.train), self.participants_per_block)
        bar = tqdm(total=len(self.variants) * len(starts), desc="pgs: score", unit="variant", disable=None)
        with bar:
            for start in starts:
                people = slice(start, min(start + self.participants_per_block, len(self.train)))
                yield people, self._sum(people, bar)

    def _sum(self, people: slice, bar: tqdm) -> np.ndarray:
        """Return the sums of a block of participants, shape (participants, scores)."""
        sums = np.zeros((len(self.weights), people.stop - people.start))
        copies = np.empty((self.variants_per_block, min(COLUMNS_PER_PRODUCT, sums.shape[1])))
        for block in self._variant_blocks():
            values = self._values(block, people, copies)
            if sparse_product.takes(values) and block.is_sparse:
                self.missing += self._add_sparse(block, values, sums)
            else:
                self.missing += self._add_dense(block, values, sums, copies)
            bar.update(len(block))
        sums += np.array(self.weights.constant)[:, None]
        return sums.T

    def _variant_blocks(self) -> Iterator[_Block]:
        bounds = np.append(np.arange(0, len(self.variants), self.variants_per_block), len(self.variants))
        edges = np.append(self.variants, len(self.genotypes.variants))[bounds]
        # Index of the first weight of each score in each block.
        cuts = np.array([np.searchsorted(variant, edges) for variant in self.weights.variant])
        for number, (first, last) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
            of_block = cuts[:, number : number + 2]
            scores = np.flatnonzero(of_block[:, 1] > of_block[:, 0])
            yield _Block(slice(first, last), self.variants[first:last], scores, of_block)

    def _values(self, block: _Block, people: slice, copies: np.ndarray) -> np.ndarray:
        """Read a block; the first block of participants also fits the training means, on the values of everyone."""
        if people == slice(0, len(self.train)):
            values = self._read(block.variants, None)
            self._fit(values, block.span, copies)
            return values
        if not people.start:
            return self._read_and_fit(block.span, people, copies)
        return self._read(block.variants, np.arange(people.start, people.stop))

    def _read(self, variants: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
        read = self.genotypes.hard_calls if self.hard_calls else self.genotypes.dosages
        return read(variants, rows)

    def _read_and_fit(self, span: slice, people: slice, copies: np.ndarray) -> np.ndarray:
        """Read complete rows in small groups, fit the means and keep the values of the first participants."""
        step = max(1, self.memory // 8 // (4 * len(self.train)))
        parts = []
        for start in range(span.start, span.stop, step):
            piece = slice(start, min(start + step, span.stop))
            values = self._read(self.variants[piece], None)
            self._fit(values, piece, copies)
            parts.append(values[:, people].copy())
        return np.concatenate(parts)

    def _fit(self, values: np.ndarray, span: slice, copies: np.ndarray) -> None:
        """Fit the mean copies in the training split from complete rows, shape (variants, participants)."""
        if sparse_product.takes(values):
            total, known = sparse_product.fit(values, self.train)
        else:
            total, known = self._fit_plainly(values, copies)
        self.never += int((known == 0).sum())
        self.expected[span] = total / np.maximum(known, 1)

    def _fit_plainly(self, values: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute the same as :func:`.sparse_product.fit` with NumPy."""
        total, known = np.zeros(len(values)), np.full(len(values), int(self.train.sum()))
        for left in range(0, values.shape[1], copies.shape[1]):
            filled, missing = self._load(values[:, left : left + copies.shape[1]], copies)
            train = self.train[left : left + copies.shape[1]]
            total += filled @ train.astype(np.float64)
            known -= np.bincount(missing[0][train[missing[1]]], minlength=len(values))
        return total, known

    def _add_sparse(self, block: _Block, values: np.ndarray, sums: np.ndarray) -> int:
        """Add a block's sparse product to the sums; return the number of missing values."""
        pieces = [(score, slice(*block.cuts[score])) for score in block.scores.tolist()]
        variant, weight = (
            np.concatenate([column[score][piece] for score, piece in pieces])
            for column in (self.weights.variant, self.weights.weight)
        )
        begin = np.append(0, np.cumsum(np.diff(block.cuts[block.scores])))
        rows = np.searchsorted(block.variants, variant)
        return sparse_product.add(values, self.expected[block.span], block.scores, begin, rows, weight, sums)

    def _add_dense(self, block: _Block, values: np.ndarray, sums: np.ndarray, copies: np.ndarray) -> int:
        """Add a block's dense matrix product to the sums; return the number of missing values."""
        weights, expected = self._dense_weights(block), self.expected[block.span]
        count = 0
        for left in range(0, values.shape[1], copies.shape[1]):
            columns = slice(left, left + copies.shape[1])
            filled, missing = self._load(values[:, columns], copies)
            filled[missing] = expected[missing[0]]
            count += len(missing[0])
            product = weights @ filled
            if len(block.scores) == len(sums):
                sums[:, columns] += product
            else:
                sums[block.scores, columns] += product
        return count

    def _dense_weights(self, block: _Block) -> np.ndarray:
        """Return a block's weights as a matrix, shape (scores of the block, variants)."""
        weights = np.zeros((len(block.scores), len(block)))
        contiguous = block.variants[-1] - block.variants[0] == len(block) - 1
        for row, score in enumerate(block.scores.tolist()):
            low, high = block.cuts[score]
            variant = self.weights.variant[score][low:high]
            columns = variant - block.variants[0] if contiguous else np.searchsorted(block.variants, variant)
            weights[row, columns] = self.weights.weight[score][low:high]
        return weights

    @staticmethod
    def _load(part: np.ndarray, copies: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Convert to float64; missing values (negative or NaN) become 0, so that they do not enter the product.

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
