"""Traits that are visible in the images, and the genetic effects on them.

A standardised trait (mean 0, variance 1) is a sum of independent parts: SNPs, one polygenic score, carrier status of
genes, age, and noise. The table below has each part's share of the variance. The trait is then scaled to its unit and
clipped. The shares are exact in the population: means and variances come from allele frequencies and linkage, never
from the simulated cohort. So participant *i* has the same traits in a cohort of any size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from preprocess.simulate.cohort import Settings, stream
from preprocess.simulate.genotypes import KEEP_EVERY, Chromosome, moments
from preprocess.simulate.rare_variants import Gene
from preprocess.simulate.scores import Score

AGE_MEAN, AGE_SD = 56.26, 8.67  # of phenotypes.draw_age, in the population
_CAUSAL_SNPS = 12
_CAUSAL_MAF = 0.1


@dataclass(frozen=True)
class Trait:
    """A visible trait; shares are of its variance before clipping and rounding.

    Attributes
    ----------
    score, genes
        Indices of the score and of the planted genes that affect the trait.
    """

    name: str
    meaning: str
    mean: float
    sd: float
    low: float
    high: float
    whole: bool = False
    snp_share: float = 0.0
    score: int | None = None
    score_share: float = 0.0
    genes: tuple[int, ...] = ()
    gene_share: float = 0.0
    age_share: float = 0.0

    @property
    def noise_share(self) -> float:
        """Share of the variance that no part explains."""
        return 1 - self.snp_share - self.score_share - self.gene_share - self.age_share


TRAITS = (
    Trait("disc_size", "disc diameter / field diameter", 0.135, 0.016, 0.085, 0.185, snp_share=0.6),
    Trait("cup_ratio", "cup diameter / disc diameter", 0.45, 0.12, 0.12, 0.85, score=0, score_share=0.6),
    Trait("pigmentation", "fundus pigment, 0 fair to 1 dark", 0.5, 0.18, 0.0, 1.0, snp_share=0.65),
    Trait("vessel_tortuosity", "bending of vessels, 1 usual", 1.0, 0.35, 0.05, 2.2, score=1, score_share=0.55),
    Trait(
        "vessel_width", "vessel calibre, 1 usual", 1.0, 0.15, 0.55, 1.5,
        snp_share=0.35, genes=(0,), gene_share=0.2,
    ),
    Trait(
        "lesion_count", "dark and bright lesions in each eye", 12, 6, 0, 40, whole=True,
        genes=(1, 2), gene_share=0.5,
    ),
    Trait(
        "drusen_count", "drusen in each eye", 14, 7, 0, 45, whole=True,
        score=2, score_share=0.4, age_share=0.2,
    ),
)  # fmt: skip


@dataclass
class Plan:
    """The planted effects, with one weighted sum ("row") of SNPs for every trait with SNPs and every used score.

    Attributes
    ----------
    weights
        Chromosome number -> SNP index -> weight per ALT copy in each row, shape (rows,).
    row_of
        Trait name -> row.
    mean, sd
        Population moments of each row, shape (rows,).
    """

    weights: dict[int, dict[int, np.ndarray]]
    row_of: dict[str, int] = field(default_factory=dict)
    score_row_of: dict[str, int] = field(default_factory=dict)
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    sd: np.ndarray = field(default_factory=lambda: np.zeros(0))


def _pick_causal(trait: Trait, settings: Settings, genome: list[Chromosome]) -> tuple[np.ndarray, np.ndarray]:
    """Return chromosome numbers and indices, shape (K,), of SNPs that ``snps`` selects; common SNPs if possible."""
    kept = [(c.number, i) for c in genome for i in range(0, len(c.positions), KEEP_EVERY)]
    frequency = np.concatenate([c.alt_frequency[::KEEP_EVERY] for c in genome])
    common = np.flatnonzero(np.minimum(frequency, 1 - frequency) >= _CAUSAL_MAF)
    rng = stream(settings.seed, "causal SNPs", TRAITS.index(trait))
    indices = np.sort(rng.permutation(common if len(common) else len(kept))[:_CAUSAL_SNPS])
    chosen = np.array([kept[index] for index in indices])
    return chosen[:, 0], chosen[:, 1]


def make_plan(settings: Settings, genome: list[Chromosome], scores: list[Score]) -> Plan:
    """Draw causal SNPs and weights, and compute the exact moments of every row."""
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    plan = Plan({})
    for trait in TRAITS:
        if trait.snp_share:
            numbers, indices = _pick_causal(trait, settings, genome)
            rng = stream(settings.seed, "causal weights", TRAITS.index(trait))
            frequency = np.array([genome[n - 1].panel[i].mean() for n, i in zip(numbers, indices, strict=True)])
            # The SNPs explain about equal variance, so that no single SNP dominates the trait.
            size = rng.uniform(0.7, 1.3, len(numbers)) * rng.choice((-1.0, 1.0), len(numbers))
            plan.row_of[trait.name] = len(rows)
            rows.append((numbers, indices, size / np.sqrt(2 * frequency * (1 - frequency))))
        if trait.score is not None:
            score = scores[trait.score]
            plan.score_row_of[trait.name] = len(rows)
            rows.append((score.chromosome, score.index, score.alt_weight))

    plan.mean, plan.sd = np.zeros(len(rows)), np.zeros(len(rows))
    for row, (numbers, indices, weights) in enumerate(rows):
        variance = 0.0
        for number in np.unique(numbers).tolist():
            on_chromosome = numbers == number
            mean, part = moments(genome[number - 1], indices[on_chromosome], weights[on_chromosome])
            plan.mean[row] += mean
            variance += part
            table = plan.weights.setdefault(number, {})
            for index, weight in zip(indices[on_chromosome].tolist(), weights[on_chromosome], strict=True):
                table.setdefault(index, np.zeros(len(rows)))[row] += weight
        plan.sd[row] = np.sqrt(variance)
    return plan


def _gene_effect(trait: Trait, gene: Gene) -> float:
    """Return the effect of carrier status in SD of the trait: all genes of a trait explain equal variance."""
    share = gene.carrier_share
    return float(np.sqrt(trait.gene_share / len(trait.genes) / (share * (1 - share))))


def realise(
    settings: Settings, plan: Plan, sums: np.ndarray, genes: list[Gene], carriers: np.ndarray, age: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the traits of all participants in their units.

    Parameters
    ----------
    sums
        SNP sums, shape (rows, N).
    genes
        The planted genes, in the order of ``carriers``.
    carriers
        bool, shape (len(genes), N).
    age
        Years, shape (N,).

    Returns
    -------
    traits
        Name -> float64, shape (N,).
    """
    standard = (sums - plan.mean[:, None]) / plan.sd[:, None]
    traits = {}
    for number, trait in enumerate(TRAITS):
        noise = stream(settings.seed, "trait noise", number).standard_normal(len(age))
        value = np.sqrt(trait.noise_share) * noise + np.sqrt(trait.age_share) * (age - AGE_MEAN) / AGE_SD
        if trait.name in plan.row_of:
            value += np.sqrt(trait.snp_share) * standard[plan.row_of[trait.name]]
        if trait.name in plan.score_row_of:
            value += np.sqrt(trait.score_share) * standard[plan.score_row_of[trait.name]]
        for gene in trait.genes:
            value += _gene_effect(trait, genes[gene]) * (carriers[gene] - genes[gene].carrier_share)
        value = np.clip(trait.mean + trait.sd * value, trait.low, trait.high)
        traits[trait.name] = np.round(value) if trait.whole else np.round(value, 5)
    return traits


def describe(plan: Plan, genome: list[Chromosome], scores: list[Score], genes: list[Gene]) -> list[dict[str, Any]]:
    """List the planted effects for truth.json; ``effect`` is in the trait's unit."""
    described = []
    for trait in TRAITS:
        entry: dict[str, Any] = {
            "name": trait.name,
            "meaning": trait.meaning,
            "mean": trait.mean,
            "sd": trait.sd,
            "low": trait.low,
            "high": trait.high,
            "whole_number": trait.whole,
            "variance_shares": {
                "snps": trait.snp_share,
                "score": trait.score_share,
                "genes": trait.gene_share,
                "age": trait.age_share,
                "noise": round(trait.noise_share, 6),
            },
            "snps": _describe_snps(trait, plan, genome) if trait.name in plan.row_of else [],
            "score": None,
            "genes": [],
        }
        if trait.score is not None:
            score, row = scores[trait.score], plan.score_row_of[trait.name]
            entry["score"] = {
                "pgs_id": score.pgs_id,
                "population_mean": float(plan.mean[row] + score.constant),
                "population_sd": float(plan.sd[row]),
                "effect": float(trait.sd * np.sqrt(trait.score_share) / plan.sd[row]),
            }
        entry["genes"] = [
            {
                "symbol": genes[gene].symbol,
                "gene": genes[gene].ensembl,
                "chromosome": genes[gene].chromosome,
                "carrier_share": genes[gene].carrier_share,
                "effect": trait.sd * _gene_effect(trait, genes[gene]),
            }
            for gene in trait.genes
        ]
        described.append(entry)
    return described


def _describe_snps(trait: Trait, plan: Plan, genome: list[Chromosome]) -> list[dict[str, Any]]:
    """List the SNPs that are planted in a trait."""
    row = plan.row_of[trait.name]
    scale = trait.sd * np.sqrt(trait.snp_share) / plan.sd[row]
    return [
        {
            "chromosome": number,
            "id": genome[number - 1].name(index),
            "index": index,
            "position": int(genome[number - 1].positions[index]),
            "effect_allele": str(genome[number - 1].alt[index]),
            "other_allele": str(genome[number - 1].ref[index]),
            "effect_allele_frequency": float(genome[number - 1].panel[index].mean()),
            "effect": float(weights[row] * scale),
        }
        for number, table in sorted(plan.weights.items())
        for index, weights in sorted(table.items())
        if weights[row]
    ]
