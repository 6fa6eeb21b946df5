"""Burden from PLINK genotypes and annotations: variants are counted first, and only carriers of rare ones are read.

Neither step spreads a rare variant of a .pgen to a byte a participant: pgenlib counts packed genotypes, and gives the
list of those who are not REF REF as it is stored. So a variant costs its carriers and not its participants.
"""

from __future__ import annotations

from typing import IO

import numpy as np
import pandas as pd
from tqdm import tqdm

from preprocess.genetics.burden.annotations import Annotations
from preprocess.genetics.burden.gene_bits import Gene, Tally, fates
from preprocess.genetics.genotypes.dosages import PlinkFiles

VARIANTS_PER_BLOCK = 4096


def scan(
    genotypes: PlinkFiles, annotations: Annotations, max_maf: float, tally: Tally, ledger: IO[str], memory: int
) -> None:
    """Add every pair of a harmful rare variant and its gene to `tally`.

    Parameters
    ----------
    genotypes : PlinkFiles
    annotations : Annotations
    max_maf : float
    tally : Tally
        Changed in place.
    ledger : text file
        One line a pair.
    memory : int
        Bytes that a block of calls may take.
    """
    pairs = annotations.pairs
    table = genotypes.variants
    verdict = pairs["fate"].to_numpy(object).copy()
    variant = pairs["variant"].to_numpy()
    chromosome = np.where(variant >= 0, table["chromosome"].to_numpy()[variant], 0)
    multi = table["alt"].astype(str).str.contains(",", regex=False).to_numpy()
    verdict[(verdict == "") & ((chromosome < 1) | (chromosome > 22))] = "not_autosomal"
    verdict[(verdict == "") & multi[variant]] = "multi_allelic"
    todo = np.flatnonzero(verdict == "")
    frequency = np.full(len(pairs), np.nan)
    counts_ref = pairs["count_ref"].to_numpy(bool)
    order = todo[np.lexsort((counts_ref[todo], variant[todo]))]
    keys = variant[order] * 2 + counts_ref[order]
    is_head = np.r_[True, keys[1:] != keys[:-1]][: len(keys)]
    heads, head_of = order[is_head], np.cumsum(is_head) - 1
    # Where in `order` the pairs of each head begin.
    starts = np.append(np.flatnonzero(is_head), len(order))
    with tqdm(total=len(heads), desc="burden: genotypes", unit="variant", disable=None) as bar:
        for first in range(0, len(heads), VARIANTS_PER_BLOCK):
            block = heads[first : first + VARIANTS_PER_BLOCK]
            share = frequencies(genotypes.genotype_counts(variant[block]), counts_ref[block])
            span = slice(starts[first], starts[first + len(block)])
            mine, head = order[span], head_of[span] - first
            frequency[mine] = share[head]
            said = fates(share, max_maf)
            verdict[mine] = said[head]
            rare = np.flatnonzero(said == "counted")
            found = entries(genotypes, variant[block[rare]], counts_ref[block[rare]], memory)
            number = np.full(len(block), -1)
            number[rare] = np.arange(len(rare))
            is_counted = number[head] >= 0
            _count(tally, annotations, table, (mine[is_counted], number[head[is_counted]]), found)
            bar.update(len(block))
    _seed(tally, annotations, chromosome)
    names, counts = np.unique(verdict.astype(str), return_counts=True)
    tally.fates.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
    out = pairs[["label", "gene", "why"]].assign(
        frequency=[f"{share:.6g}" if share == share else "" for share in frequency], fate=verdict
    )
    out[["label", "frequency", "fate", "gene", "why"]].to_csv(ledger, sep="\t", header=False, index=False)


def _count(
    tally: Tally,
    annotations: Annotations,
    table: pd.DataFrame,
    pairs: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Add the carriers of counted pairs to their genes, all variants of a gene together.

    Parameters
    ----------
    pairs : (ndarray, ndarray) of int64
        Rows of the annotations, and the variant of `found` of each.
    found : (ndarray, ndarray, ndarray)
        From :func:`entries`.
    """
    (rows, head), (which, samples, calls) = pairs, found
    if not len(rows):
        return
    chosen = annotations.pairs.iloc[rows]
    variant = chosen["variant"].to_numpy()
    chromosome, position = table["chromosome"].to_numpy()[variant], table["position"].to_numpy()[variant]
    low, high = np.searchsorted(which, head, "left"), np.searchsorted(which, head, "right")
    for why, count in zip(*np.unique(chosen["why"].to_numpy(object).astype(str), return_counts=True), strict=True):
        tally.fates[f"counted_{why}"] += int(count)
    codes, names = pd.factorize(chosen["gene"].to_numpy(object))
    group = codes * 32 + chromosome
    # Every entry once for each pair of its variant, then gene by gene.
    counts = high - low
    inside = np.repeat(low - np.r_[0, np.cumsum(counts)[:-1]], counts) + np.arange(counts.sum())
    pair_of = np.repeat(np.arange(len(rows)), counts)
    carried = calls[inside] > 0
    inside, pair_of = inside[carried], pair_of[carried]
    order = np.argsort(group[pair_of], kind="stable")
    samples, twice, group_of = samples[inside][order], calls[inside][order] > 1, group[pair_of][order]
    distinct, first, members = np.unique(group, return_index=True, return_counts=True)
    edges = np.searchsorted(group_of, np.append(distinct, distinct[-1] + 1))
    for number, (start, count) in enumerate(zip(first.tolist(), members.tolist(), strict=True)):
        key = (int(chromosome[start]), str(names[codes[start]]))
        if key not in tally.genes:
            known = annotations.genes.get(key[1])
            place = (known.position, known.symbol) if known else (int(position[start]), "")
            tally.genes[key] = Gene(key[0], *place)
        mine = slice(edges[number], edges[number + 1])
        tally.count(key, samples[mine], twice[mine], count)


def _seed(tally: Tally, annotations: Annotations, chromosome: np.ndarray) -> None:
    """Add the annotated genes without a counted variant; those on X and the like are not looked at.

    Parameters
    ----------
    chromosome : ndarray of int, shape (pairs,)
        Where each pair's variant lies; 0 where the genotypes lack it.
    """
    pairs = pd.DataFrame({"chromosome": chromosome, "gene": annotations.pairs["gene"]}).drop_duplicates()
    pairs = pairs[pairs["gene"] != ""]
    found = set(zip(pairs["chromosome"].tolist(), pairs["gene"].tolist(), strict=True))
    placed = {name for number, name in found if number}
    keys = {(number, name) for number, name in found if 1 <= number <= 22}
    # A gene whose variants are all absent lies where the set list or VEP says, or nowhere that we know.
    for name in {*pairs["gene"], *annotations.genes} - placed:
        known = annotations.genes.get(name)
        if known is None or known.chromosome:
            keys.add((known.chromosome if known else 0, name))
    for key in keys:
        # Without a counted variant it is no feature: only that it is there matters.
        tally.genes.setdefault(key, Gene(key[0], 0))


def entries(
    genotypes: PlinkFiles, variants: np.ndarray, count_ref: np.ndarray, memory: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find who carries what, or has no call.

    Parameters
    ----------
    genotypes : PlinkFiles
    variants : ndarray of int64, shape (n,)
    count_ref : ndarray of bool, shape (n,)
        Count copies of ``ref`` instead of ``alt``.
    memory : int
        Bytes of a block of calls.

    Returns
    -------
    which : ndarray of int64, shape (entries,)
        Which of the n, ascending.
    samples : ndarray of int64, shape (entries,)
        Participants.
    calls : ndarray of int8, shape (entries,)
        1, 2; negative is missing.
    """
    found, sparse = genotypes.carriers(variants, ~count_ref)
    rest, parts = np.flatnonzero(~found), [sparse]
    # A block takes a byte a call, its mask another, and the turned copy one more.
    step = max(1, memory // (4 * len(genotypes.samples)))
    for start in range(0, len(rest), step):
        numbers = rest[start : start + step]
        block = genotypes.hard_calls(variants[numbers])
        turn = np.flatnonzero(count_ref[numbers])
        if len(turn):
            block[turn] = np.where(block[turn] < 0, block[turn], 2 - block[turn])
        row, sample = np.nonzero(block)
        parts.append((numbers[row], sample, block[row, sample]))
    which, samples, calls = (np.concatenate(one) for one in zip(*parts, strict=True))
    if len(parts) > 1:
        order = np.argsort(which, kind="stable")
        which, samples, calls = which[order], samples[order], calls[order]
    return which, samples, calls


def frequencies(counts: np.ndarray, count_ref: np.ndarray) -> np.ndarray:
    """Return the frequency of the counted allele among those with a call; 0 where nobody has one.

    Parameters
    ----------
    counts : ndarray of uint32, shape (n, 4)
        People with 0, 1, 2 copies of ALT, and without a call.
    count_ref : ndarray of bool, shape (n,)

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    none, one, two = (counts[:, column].astype(np.int64) for column in range(3))
    copies = np.where(count_ref, 2 * none + one, 2 * two + one)
    return copies / np.maximum(1, 2 * (none + one + two))
