"""Burden from genotypes of any format and annotations: count every annotated allele, then list carriers of rare ones.

A variant of a .pgen is never unpacked to one byte per participant: pgenlib counts packed genotypes, and lists the
carriers as the record stores them. The cost of a rare variant is proportional to its carriers, not to the participants.

Example: the annotations pair variants with genes, and ``--max-maf`` is 0.01.

===========  =====  ================  ===============================================
pair         fate   allele frequency  what happens
===========  =====  ================  ===============================================
v7, BRCA1    ""     0.002             counted: carriers of v7 are set in BRCA1
v7, NBR1     ""     0.002             counted: the same carriers are set in NBR1 too
v3, TP53     ""     0.08              ``too_common``
v5, TP53     ""     0.997             ``alt_is_major``: nearly everyone carries it
===========  =====  ================  ===============================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

import numpy as np
import pandas as pd
from tqdm import tqdm

from preprocess.genetics.burden.annotations import Annotations
from preprocess.genetics.burden.gene_bits import Gene, Tally, fates
from preprocess.genetics.genotypes import Carriers, Genotypes
from preprocess.genetics.text import plain_cell

ALLELES_PER_BLOCK = 4096
CHROMOSOMES = 32  # more than there are codes


@dataclass(frozen=True)
class CountedAlleles:
    """The distinct alleles of pairs: each allele is counted once, even if several genes are paired with it.

    Example: the pairs (v7, BRCA1), (v3, TP53), (v7, NBR1) give the alleles v3 and v7, ``pairs`` [1, 0, 2] and ``start``
    [0, 1, 3].

    Attributes
    ----------
    variant : ndarray of int64, shape (alleles,)
        Row of the genotypes, ascending.
    count_ref : ndarray of bool, shape (alleles,)
        The harmful allele is the one that the genotypes call ``ref``.
    pairs : ndarray of int64
        Rows of the annotations, allele by allele.
    start : ndarray of int64, shape (alleles + 1,)
        Where the pairs of each allele begin in `pairs`.
    """

    variant: np.ndarray
    count_ref: np.ndarray
    pairs: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, variant: np.ndarray, count_ref: np.ndarray, rows: np.ndarray) -> CountedAlleles:
        """Group the pairs `rows`; `variant` and `count_ref` have an entry for every pair of the annotations."""
        pairs = rows[np.lexsort((count_ref[rows], variant[rows]))]
        key = variant[pairs] * 2 + count_ref[pairs]
        first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]][: len(key)])
        return cls(variant[pairs[first]], count_ref[pairs[first]], pairs, np.append(first, len(pairs)))

    def __len__(self) -> int:
        return len(self.variant)

    def block(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of alleles first..last, and the index of each pair's allele in that block."""
        start = self.start[first : last + 1]
        return self.pairs[start[0] : start[-1]], np.repeat(np.arange(last - first), np.diff(start))


def scan(
    genotypes: Genotypes, annotations: Annotations, max_maf: float, tally: Tally, ledger: IO[str], memory: int
) -> None:
    """Add every pair of a harmful rare variant and its gene to `tally`.

    Parameters
    ----------
    genotypes : Genotypes
    annotations : Annotations
    max_maf : float
    tally : Tally
        Changed in place.
    ledger : text file
        One line per pair.
    memory : int
        Maximum size of a block of calls in bytes.
    """
    pairs = annotations.pairs
    variant, count_ref = pairs["variant"].to_numpy(), pairs["count_ref"].to_numpy(bool)
    chromosome = np.where(variant >= 0, genotypes.variants["chromosome"].to_numpy()[variant], 0)
    fate = _exclude(pairs["fate"].to_numpy(object), chromosome, genotypes.variants.iloc[variant])
    frequency = np.full(len(pairs), np.nan)
    alleles = CountedAlleles.of(variant, count_ref, np.flatnonzero(fate == ""))

    def is_rare(counts: np.ndarray, of_ref: np.ndarray) -> np.ndarray:
        return fates(frequencies(counts, of_ref), max_maf) == "counted"

    with tqdm(total=len(alleles), desc="burden: genotypes", unit="variant", disable=None) as bar:
        for first in range(0, len(alleles), ALLELES_PER_BLOCK):
            last = min(first + ALLELES_PER_BLOCK, len(alleles))
            of_ref = alleles.count_ref[first:last]
            counts, carriers = genotypes.count_and_list(alleles.variant[first:last], of_ref, is_rare, memory)
            share = frequencies(counts, of_ref)
            rows, allele = alleles.block(first, last)
            frequency[rows], fate[rows] = share[allele], fates(share, max_maf)[allele]
            counted = fate[rows] == "counted"
            _add_carriers(tally, annotations, genotypes.variants, rows[counted], allele[counted], carriers)
            bar.update(last - first)
    _add_genes_without_carriers(tally, annotations, chromosome)
    names, numbers = np.unique(fate.astype(str), return_counts=True)
    tally.fates.update(dict(zip(names.tolist(), numbers.tolist(), strict=True)))
    _write_ledger(ledger, pairs, frequency, fate)


def _exclude(fate: np.ndarray, chromosome: np.ndarray, variants: pd.DataFrame) -> np.ndarray:
    """Return the fates of the pairs; this decides the fates that need no genotypes.

    Parameters
    ----------
    fate : ndarray of str, shape (pairs,)
    chromosome : ndarray of int, shape (pairs,)
    variants : DataFrame
        The variant of each pair.
    """
    fate = fate.copy()
    fate[(fate == "") & ((chromosome < 1) | (chromosome > 22))] = "not_autosomal"
    fate[(fate == "") & ~variants["passes"].to_numpy()] = "filtered"
    fate[(fate == "") & (variants["alleles"] > 2).to_numpy()] = "multi_allelic"
    return fate


def _write_ledger(ledger: IO[str], pairs: pd.DataFrame, frequency: np.ndarray, fate: np.ndarray) -> None:
    shown = ["" if np.isnan(share) else f"{share:.6g}" for share in frequency.tolist()]
    text = {name: pairs[name].astype(str).map(plain_cell) for name in ("label", "gene", "why")}
    table = pd.DataFrame(text).assign(frequency=shown, fate=fate)
    table[["label", "frequency", "fate", "gene", "why"]].to_csv(ledger, sep="\t", header=False, index=False)


def _add_carriers(
    tally: Tally,
    annotations: Annotations,
    variants: pd.DataFrame,
    rows: np.ndarray,
    allele: np.ndarray,
    carriers: Carriers,
) -> None:
    """Add the carriers of counted pairs to the genes, all variants of a gene together.

    Parameters
    ----------
    variants : DataFrame
        The variants of the genotypes.
    rows : ndarray of int64, shape (pairs,)
        Rows of the annotations.
    allele : ndarray of int64, shape (pairs,)
        Index in `carriers` of the variant of each pair.
    carriers : Carriers
    """
    if not len(rows):
        return
    pairs = annotations.pairs.iloc[rows]
    for why, count in zip(*np.unique(pairs["why"].to_numpy(object).astype(str), return_counts=True), strict=True):
        tally.fates[f"counted_{why}"] += int(count)
    variant = pairs["variant"].to_numpy()
    chromosome, position = variants["chromosome"].to_numpy()[variant], variants["position"].to_numpy()[variant]
    codes, names = pd.factorize(pairs["gene"].to_numpy(object))
    # A table may pair one gene with variants of several chromosomes: each chromosome gives a separate feature.
    gene = codes * CHROMOSOMES + chromosome
    entry, pair = ranges(
        np.searchsorted(carriers.variant, allele, "left"), np.searchsorted(carriers.variant, allele, "right")
    )
    has_call = carriers.copies[entry] > 0
    entry, pair = entry[has_call], pair[has_call]
    order = np.argsort(gene[pair], kind="stable")
    entry, gene_of_entry = entry[order], gene[pair][order]
    distinct, first, members = np.unique(gene, return_index=True, return_counts=True)
    edges = np.searchsorted(gene_of_entry, np.append(distinct, distinct[-1] + 1))
    for number, (start, count) in enumerate(zip(first.tolist(), members.tolist(), strict=True)):
        key = (int(chromosome[start]), str(names[codes[start]]))
        if key not in tally.genes:
            known = annotations.genes.get(key[1])
            located = (known.position, known.symbol) if known else (int(position[start]), "")
            tally.genes[key] = Gene(key[0], *located)
        entries = entry[edges[number] : edges[number + 1]]
        tally.count(key, carriers.sample[entries], carriers.copies[entries] > 1, count)


def ranges(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the concatenated numbers of several ranges, and the index of the range of each number.

    Example: ``ranges([2, 0], [4, 1])`` is ``([2, 3, 0], [0, 0, 1])``.
    """
    lengths = high - low
    before = np.cumsum(lengths) - lengths
    return np.repeat(low - before, lengths) + np.arange(lengths.sum()), np.repeat(np.arange(len(low)), lengths)


def _add_genes_without_carriers(tally: Tally, annotations: Annotations, chromosome: np.ndarray) -> None:
    """Add the annotated autosomal genes without a counted variant.

    Parameters
    ----------
    chromosome : ndarray of int, shape (pairs,)
        Chromosome of each pair's variant; 0 if the variant is absent from the genotypes.
    """
    pairs = pd.DataFrame({"chromosome": chromosome, "gene": annotations.pairs["gene"]}).drop_duplicates()
    pairs = pairs[pairs["gene"] != ""]
    located = set(zip(pairs["chromosome"].tolist(), pairs["gene"].tolist(), strict=True))
    with_variant = {name for number, name in located if number}
    keys = {(number, name) for number, name in located if 1 <= number <= 22}
    # If all variants of a gene are absent, the set list or VEP gives its chromosome; otherwise it is unknown (0).
    for name in {*pairs["gene"], *annotations.genes} - with_variant:
        known = annotations.genes.get(name)
        if known is None or known.chromosome:
            keys.add((known.chromosome if known else 0, name))
    for key in keys:
        # A gene without a counted variant is not a feature: the report only counts it.
        tally.genes.setdefault(key, Gene(key[0], 0))


def frequencies(counts: np.ndarray, count_ref: np.ndarray) -> np.ndarray:
    """Return the frequency of the counted allele among participants with a call; 0 without any call.

    Example: 6 people without ALT, 3 with one copy, 1 with two, 2 without a call: ALT 5 / 20, REF 15 / 20.

    Parameters
    ----------
    counts : ndarray of int64, shape (n, 4)
        People with 0, 1, 2 copies of ALT, and without a call.
    count_ref : ndarray of bool, shape (n,)

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    hom_ref, het, hom_alt = (counts[:, column] for column in range(3))
    copies = np.where(count_ref, 2 * hom_ref + het, 2 * hom_alt + het)
    return copies / np.maximum(1, 2 * (hom_ref + het + hom_alt))
