"""Common SNPs: one PLINK 1 file set per autosome, streamed SNP by SNP.

The model is that of Li and Stephens (2003): each haplotype is a mosaic of a panel of 100 founders and changes founder
with a fixed probability per SNP. The SNPs of the panel form blocks. Within a block the founders have one circular
order, and the carriers of a SNP's minor allele are consecutive founders of this order, similar to clades of a
genealogy. Neighbouring SNPs correlate as in real haplotype blocks, and the covariance of any two SNPs is known exactly
(:func:`moments`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bed_reader import create_bed

from mrmfast.arithmetic import ceil_div
from mrmfast.atomic import commit_file, partial_path
from preprocess.simulate.cohort import CHROMOSOME_LENGTHS, sparse_hits, stream

FOUNDERS = 100
SWITCH_CHANCE = 0.04
MISSING_CHANCE = 0.01
MISSING = -127  # bed-reader's code for a missing int8 call
KEEP_EVERY = 100  # a later step keeps SNPs 0, 100, 200, ... of each chromosome
_BLOCK = 20
_RUNS_PER_BLOCK = 2
_ALT_IS_MAJOR = 0.15
_TRANSITION = {"A": "G", "G": "A", "C": "T", "T": "C"}
_TRANSVERSIONS = {"A": "CT", "G": "CT", "C": "AG", "T": "AG"}


@dataclass(frozen=True)
class Chromosome:
    """The variants of one autosome; S SNPs, in order of position.

    Attributes
    ----------
    number
        1 to 22.
    panel
        1 where a founder carries ALT, uint8, shape (S, FOUNDERS).
    positions
        Base pairs, GRCh38, one-based, increasing, int64, shape (S,).
    ref, alt
        Alleles, shape (S,).
    """

    number: int
    panel: np.ndarray
    positions: np.ndarray
    ref: np.ndarray
    alt: np.ndarray

    @property
    def alt_frequency(self) -> np.ndarray:
        """Population frequency of ALT, float64, shape (S,)."""
        return self.panel.mean(axis=1)

    def name(self, index: int) -> str:
        """Return a simulated rs number, unique in the genome."""
        return f"rs9{self.number:02d}{index:07d}"


def make_chromosome(seed: int, number: int, snps: int) -> Chromosome:
    """Draw positions, alleles and founder panel of one autosome; independent of the participants."""
    rng = stream(seed, "chromosome", number)
    blocks = ceil_div(snps, _BLOCK)
    rank_of_founder = rng.random((blocks, FOUNDERS)).argsort(axis=1).astype(np.int16)
    run_starts = rng.integers(0, FOUNDERS, (blocks, _RUNS_PER_BLOCK), dtype=np.int16)
    block = np.arange(snps) // _BLOCK
    start = run_starts[block, rng.integers(0, _RUNS_PER_BLOCK, snps)]
    # Rare minor alleles are more common than common ones; 1 to 50 founders of 100 carry the minor allele.
    carriers = 1 + np.floor(50 * rng.random(snps) ** 1.5).astype(np.int16)
    minor = (rank_of_founder[block] - start[:, None]) % FOUNDERS < carriers[:, None]
    panel = (minor ^ (rng.random(snps) < _ALT_IS_MAJOR)[:, None]).astype(np.uint8)

    spacing = CHROMOSOME_LENGTHS[number - 1] / (snps + 1)
    positions = ((np.arange(snps) + 0.55 + 0.9 * rng.random(snps)) * spacing).astype(np.int64) + 1

    ref = np.array(list("ACGT"))[rng.integers(0, 4, snps)]
    kind = rng.random(snps)  # transitions are about twice as common as the two transversions together
    alt = np.array(
        [_TRANSITION[r] if k < 0.67 else _TRANSVERSIONS[r][int(k > 0.835)] for r, k in zip(ref, kind, strict=True)]
    )
    return Chromosome(number, panel, positions, ref, alt)


def moments(chromosome: Chromosome, indices: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Compute population mean and variance of a weighted sum of ALT counts over SNPs of one chromosome.

    Two SNPs d apart on a haplotype share their founder with probability (1 - SWITCH_CHANCE)**d, otherwise they are
    independent; a genotype is two independent haplotypes.

    Parameters
    ----------
    indices
        SNPs within the chromosome, int, shape (K,).
    weights
        Weight per ALT copy, float, shape (K,).
    """
    carried = chromosome.panel[indices].astype(np.float64)
    frequency = carried.mean(axis=1)
    covariance = carried @ carried.T / FOUNDERS - np.outer(frequency, frequency)
    distance = np.abs(indices[:, None] - indices[None, :])
    covariance *= (1 - SWITCH_CHANCE) ** distance
    return float(2 * weights @ frequency), float(2 * weights @ covariance @ weights)


def write_chromosome(
    folder: Path,
    seed: int,
    number: int,
    snps: int,
    ids: np.ndarray,
    weights: dict[int, np.ndarray],
    rows: int,
) -> np.ndarray:
    """Write ``chr{number}.bed/.bim/.fam`` and return the contribution of its SNPs to each weighted sum.

    Column 5 of the .bim (A1) is ALT, column 6 (A2) is REF, and A1 is counted. The sums use the true genotypes,
    also for calls that are written as missing.

    Parameters
    ----------
    ids
        Participant ids, shape (N,).
    weights
        SNP index -> weight per ALT copy in each sum, shape (rows,).
    rows
        Number of sums.

    Returns
    -------
    sums
        float64, shape (rows, N).
    """
    chromosome = make_chromosome(seed, number, snps)
    people = len(ids)
    sums = np.zeros((rows, people))
    founder = stream(seed, "first founder", number).integers(0, FOUNDERS, 2 * people, dtype=np.uint8)
    final = {suffix: folder / f"chr{number}.{suffix}" for suffix in ("fam", "bim", "bed")}
    parts = {suffix: partial_path(path) for suffix, path in final.items()}
    properties = _properties(chromosome, number, snps, [str(i) for i in ids])
    with create_bed(
        parts["bed"], people, snps, properties, fam_location=parts["fam"], bim_location=parts["bim"]
    ) as writer:
        for index in range(snps):
            if index:
                moved, spare = sparse_hits(stream(seed, "switch", number, index), SWITCH_CHANCE, 2 * people)
                founder[moved] = (spare * FOUNDERS).astype(np.uint8)
            carried = chromosome.panel[index][founder]
            count = (carried[0::2] + carried[1::2]).astype(np.int8)
            if index in weights:
                sums += weights[index][:, None] * count
            missing, _ = sparse_hits(stream(seed, "missing", number, index), MISSING_CHANCE, people)
            count[missing] = MISSING
            writer.write(count)
    for suffix, path in final.items():
        commit_file(parts[suffix], path)
    return sums


def _properties(chromosome: Chromosome, number: int, snps: int, names: list[str]) -> dict[str, Any]:
    """Return the columns of ``.fam`` and ``.bim`` as bed-reader names them."""
    return {
        "fid": names,
        "iid": names,
        "chromosome": [str(number)] * snps,
        "sid": [chromosome.name(index) for index in range(snps)],
        "bp_position": chromosome.positions,
        "allele_1": chromosome.alt,
        "allele_2": chromosome.ref,
    }
