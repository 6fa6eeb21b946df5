"""Polygenic scores as PGS Catalog scoring files (format 2.0, harmonised to GRCh38).

As in real files, REF is the effect allele of some rows, and about 2 % of the rows have variants that the genotypes
lack.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocess.simulate.cohort import CHROMOSOME_LENGTHS, Settings, stream
from preprocess.simulate.files import write_gzip
from preprocess.simulate.genotypes import Chromosome

_EFFECT_IS_REF = 0.4
_ABSENT = 0.02
_COLUMNS = (
    "rsID", "chr_name", "chr_position", "effect_allele", "other_allele", "effect_weight",
    "hm_source", "hm_rsID", "hm_chr", "hm_pos",
)  # fmt: skip
_HEADER = """\
###PGS CATALOG SCORING FILE - see https://www.pgscatalog.org/downloads/#dl_ftp_scoring for additional information
#format_version=2.0
##POLYGENIC SCORE (PGS) INFORMATION
#pgs_id={pgs_id}
#pgs_name=SIMULATED_{pgs_id}
#trait_reported=Simulated trait of {pgs_id}
#trait_mapped=simulated
#trait_efo=EFO_0000000
#genome_build=GRCh38
#variants_number={variants}
#weight_type=beta
##SOURCE INFORMATION
#pgp_id=PGP900000
#citation=mrmfast simulation; no study
##HARMONIZATION DETAILS
#HmPOS_build=GRCh38
#HmPOS_date=2024-01-01
#HmPOS_match_chr={{"True": null, "False": null}}
#HmPOS_match_pos={{"True": null, "False": null}}
"""


@dataclass(frozen=True)
class Score:
    """One polygenic score of K variants that the genotypes hold, in genome order.

    Attributes
    ----------
    chromosome, index
        Chromosome number (1-22) and SNP within it, int, shape (K,).
    weight
        Weight per copy of the effect allele as printed in the file, float64, shape (K,).
    effect_is_ref
        Whether the effect allele is REF, bool, shape (K,).
    """

    pgs_id: str
    number: int
    chromosome: np.ndarray
    index: np.ndarray
    weight: np.ndarray
    effect_is_ref: np.ndarray

    @property
    def alt_weight(self) -> np.ndarray:
        """Weight per ALT copy, shape (K,): a weight w on REF is -w on ALT and a constant 2w."""
        return np.where(self.effect_is_ref, -self.weight, self.weight)

    @property
    def constant(self) -> float:
        """The constant that the REF rows add to every participant's score."""
        return float(2 * self.weight[self.effect_is_ref].sum())


def make_scores(settings: Settings, counts: list[int]) -> list[Score]:
    """Draw the scores; ``counts`` are the SNPs on chromosomes 1-22."""
    ends = np.cumsum(counts)
    scores = []
    for number in range(1, settings.scores + 1):
        rng = stream(settings.seed, "score", number)
        size = min(int(rng.integers(60, 401)), settings.snps // 4)
        flat = np.sort(rng.choice(settings.snps, size, replace=False))
        chromosome = np.searchsorted(ends, flat, side="right")
        index = flat - np.concatenate(([0], ends))[chromosome]
        weight = np.round(0.05 * rng.standard_normal(size), 6)
        weight[weight == 0] = 1e-6
        scores.append(
            Score(
                f"PGS{900000 + number}",
                number,
                chromosome + 1,
                index,
                weight,
                rng.random(size) < _EFFECT_IS_REF,
            )
        )
    return scores


def write_score(folder: Path, seed: int, score: Score, genome: list[Chromosome]) -> int:
    """Write ``{pgs_id}_hmPOS_GRCh38.txt.gz``; return the number of rows without a variant in the genotypes."""
    rng = stream(seed, "score rows", score.number)
    rows: list[tuple[int, int, str, str, str, float]] = []
    for number, index, weight, ref_counts in zip(
        score.chromosome, score.index, score.weight, score.effect_is_ref, strict=True
    ):
        chromosome = genome[number - 1]
        alleles = (str(chromosome.alt[index]), str(chromosome.ref[index]))
        effect, other = alleles[::-1] if ref_counts else alleles
        rows.append((int(number), int(chromosome.positions[index]), chromosome.name(index), effect, other, weight))
    absent = max(1, round(_ABSENT * len(rows)))
    for extra in range(absent):
        number = int(rng.integers(1, 23))
        position = int(rng.integers(1, CHROMOSOME_LENGTHS[number - 1]))
        while position in genome[number - 1].positions:
            position += 1
        name = f"rs8{score.number:05d}{extra:03d}"
        rows.append((number, position, name, "A", "G", round(float(0.05 * rng.standard_normal()), 6)))
    rows.sort()
    with write_gzip(folder / f"{score.pgs_id}_hmPOS_GRCh38.txt.gz") as handle:
        handle.write(_HEADER.format(pgs_id=score.pgs_id, variants=len(rows)).encode())
        handle.write(("\t".join(_COLUMNS) + "\n").encode())
        for number, position, name, effect, other, weight in rows:
            row = (name, number, position, effect, other, f"{weight:.6g}", "ENSEMBL", name, number, position)
            handle.write(("\t".join(map(str, row)) + "\n").encode())
    return absent
