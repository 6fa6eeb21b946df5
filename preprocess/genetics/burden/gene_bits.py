"""Carriers of counted variants: one bit per gene and participant, held by gene and written by participant.

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
    """One gene and its carriers so far.

    Attributes
    ----------
    chromosome : int
    position : int
        Position of the first annotated variant, or of the gene in a set list.
    symbol : str
        "" if unknown.
    carriers, homozygous : ndarray of uint8, shape (ceil(samples / 8),) or None
        One bit per participant (lowest first); None until a variant counts.
    variants : int
        Number of counted variants.
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
        Number of participants, the bits of a gene.
    copies : bool
        Also record the participants with two copies of one variant.
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
            A key of `genes`.
        samples : ndarray of int, shape (carriers,)
        homozygous : ndarray of bool, shape (carriers,)
            Whether the carrier has two copies of a variant.
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
        hit = (key for key, gene in self.genes.items() if gene.carriers is not None)
        return sorted(hit, key=lambda key: (key[0], self.genes[key].position, key[1]))

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
    """Return which alleles are rare; where the *reference* allele is rare, nearly everyone would be a carrier of ALT.

    See docs/genetics-pitfalls.md#allele-frequency-is-not-maf.

    Returns
    -------
    ndarray of str, of the shape of `frequency`
        ``counted``, ``not_carried``, ``too_common``, ``alt_is_major``.
    """
    conditions = [frequency == 0, frequency < max_maf, frequency > 0.5]
    return np.select(conditions, ["not_carried", "counted", "alt_is_major"], "too_common")
