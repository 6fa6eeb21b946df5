"""Who carries something counted in which gene: bits by gene while variants stream by, by participant when written.

Memory: genes x participants / 8 bytes once (1.2 GB for 18,574 genes and 500,000 participants), twice with copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

PARTICIPANTS_PER_BLOCK = 4096  # a multiple of 8: gene rows are packed along participants


@dataclass
class Gene:
    """One gene while variants stream by.

    Attributes
    ----------
    chromosome : int
    position : int
        Of its first annotated variant, or as a set list gives it.
    symbol : str
        "" if unknown.
    carriers, homozygous : ndarray of uint8, shape (ceil(samples / 8),) or None
        One bit per participant (lowest first); None until a variant counts.
    variants : int
        Variants that counted.
    """

    chromosome: int
    position: int
    symbol: str = ""
    carriers: np.ndarray | None = None
    homozygous: np.ndarray | None = None
    variants: int = 0


@dataclass
class Tally:
    """Genes by (chromosome, id), and counts of the fates of (variant, allele) pairs.

    Parameters
    ----------
    samples : int
        Participants: bits of a gene.
    copies : bool
        Keep who carries two copies of one variant too.
    """

    samples: int
    copies: bool = False
    genes: dict[tuple[int, str], Gene] = field(default_factory=dict)
    fates: Counter[str] = field(default_factory=Counter)

    def count(self, key: tuple[int, str], samples: np.ndarray, homozygous: np.ndarray, variants: int = 1) -> None:
        """Add the carriers of one variant or several to a gene.

        Parameters
        ----------
        key : (chromosome, gene id)
            Of `genes`.
        samples : ndarray of int, shape (carriers,)
        homozygous : ndarray of bool, shape (carriers,)
            Who has two copies of a variant.
        """
        gene = self.genes[key]
        gene.variants += variants
        if gene.carriers is None:
            gene.carriers = np.zeros((self.samples + 7) // 8, dtype=np.uint8)
            if self.copies:
                gene.homozygous = np.zeros_like(gene.carriers)
        _set(gene.carriers, samples)
        if gene.homozygous is not None:
            _set(gene.homozygous, samples[homozygous])

    def hit(self) -> list[tuple[int, str]]:
        """Return the genes with a counted variant, by chromosome and position."""
        found = (key for key, gene in self.genes.items() if gene.carriers is not None)
        return sorted(found, key=lambda key: (key[0], self.genes[key].position, key[1]))

    def blocks(self, keys: list[tuple[int, str]]) -> Iterator[np.ndarray]:
        """Yield participants x genes, uint8: 0, 1, and 2 with copies.

        Parameters
        ----------
        keys : list
            Genes, as columns.
        """
        for start in range(0, self.samples, PARTICIPANTS_PER_BLOCK):
            count = min(PARTICIPANTS_PER_BLOCK, self.samples - start)
            block = np.empty((count, len(keys)), dtype=np.uint8)
            span = slice(start // 8, (start + PARTICIPANTS_PER_BLOCK) // 8)
            for column, key in enumerate(keys):
                gene = self.genes[key]
                assert gene.carriers is not None
                block[:, column] = np.unpackbits(gene.carriers[span], count=count, bitorder="little")
                if gene.homozygous is not None:
                    block[:, column] += np.unpackbits(gene.homozygous[span], count=count, bitorder="little")
            yield block


def _set(bits: np.ndarray, samples: np.ndarray) -> None:
    np.bitwise_or.at(bits, samples >> 3, np.left_shift(1, samples & 7).astype(np.uint8))


def fates(frequency: np.ndarray, max_maf: float) -> np.ndarray:
    """Say which alleles are rare; where the *reference* is rare nearly everyone would carry it.

    See docs/genetics-pitfalls.md#allele-frequency-is-not-maf.

    Returns
    -------
    ndarray of str, of the shape of `frequency`
        ``counted``, ``not_carried``, ``too_common``, ``alt_is_major``.
    """
    conditions = [frequency == 0, frequency < max_maf, frequency > 0.5]
    return np.select(conditions, ["not_carried", "counted", "alt_is_major"], "too_common")
