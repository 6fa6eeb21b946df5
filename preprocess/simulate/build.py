"""Write the files in order: genome, scores, rare variants, traits and phenotypes, images, truth."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from preprocess import parallel
from preprocess.simulate import cohort, genotypes, phenotypes, photographs, rare_variants, scores, traits
from preprocess.simulate.cohort import Settings
from preprocess.simulate.files import write_json, write_table

_FORMAT = 1
_TRUTH = "truth.json"
_WORK = ".simulate"  # settings and partial sums of an unfinished folder
_JPEG_BYTES = 62_000
_VCF_BYTES_PER_CALL = 0.05


def simulate(out: Path, settings: Settings, workers: int) -> None:
    """Write a data set to ``out``, or complete an unfinished data set with equal settings.

    Raises
    ------
    UserError
        ``workers`` is below 1, or ``out`` has other content than a run with these settings.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}: give 1 or more")
    if _claim(out, settings):
        shutil.rmtree(out / _WORK, ignore_errors=True)  # if the last run was killed after writing truth.json
        print(f"{out} is already complete with these arguments; nothing to do")
        return
    print(f"writing about {estimate_bytes(settings) / 1e6:,.0f} MB to {out}")
    for folder in ("fundus", "genotypes", "pgs", "burden"):
        (out / folder).mkdir(exist_ok=True)

    seed, ids = settings.seed, cohort.participant_ids(settings.seed, settings.participants)
    counts = cohort.divide_snps(settings.snps)
    genome = [genotypes.make_chromosome(seed, number, snps) for number, snps in enumerate(counts, start=1)]
    score_list = scores.make_scores(settings, counts)
    genes, planted = rare_variants.make_genes(settings)
    planted_genes = [genes[number] for number in planted]
    plan = traits.make_plan(settings, genome, score_list)

    absent = {score.pgs_id: scores.write_score(out / "pgs", seed, score, genome) for score in score_list}
    described = traits.describe(plan, genome, score_list, planted_genes)
    del genome  # 100 bytes per SNP; each chromosome is drawn again when it is written

    sums = _write_genotypes(out, settings, counts, ids, plan, workers)
    carriers = _write_burden(out, settings, genes, planted, ids)
    age = phenotypes.draw_age(seed, settings.participants)
    values = traits.realise(settings, plan, sums, planted_genes, carriers, age)
    _write_traits(out, seed, ids, values, age)
    photographs.take_all(out / "fundus", seed, ids, values, workers)

    truth = {
        "format": _FORMAT,
        "arguments": settings.to_dict(),
        "seed": seed,
        "build": "GRCh38",
        "reference": "A2",
        "genotypes_missing_share": genotypes.MISSING_CHANCE,
        "keep_every": genotypes.KEEP_EVERY,
        "sizes": _sizes(settings, counts, genes),
        "traits": described,
        "scores": {
            score.pgs_id: {"matched_rows": len(score.index), "absent_rows": absent[score.pgs_id]}
            for score in score_list
        },
        "bad_images": _bad_images(seed, ids),
    }
    write_json(out / _TRUTH, truth)
    shutil.rmtree(out / _WORK)


def _sizes(settings: Settings, counts: list[int], genes: list[rare_variants.Gene]) -> dict[str, Any]:
    return {
        "participants": settings.participants,
        "photographs": 2 * settings.participants,
        "snps": settings.snps,
        "snps_by_chromosome": counts,
        "scores": settings.scores,
        "genes": settings.genes,
        "rare_variants": sum(len(gene.variants) for gene in genes),
    }


def _write_traits(out: Path, seed: int, ids: np.ndarray, values: dict[str, np.ndarray], age: np.ndarray) -> None:
    """Write the tables of traits and of UK Biobank fields."""
    order = np.argsort(ids).tolist()
    rows = ([str(ids[i]), *(f"{column[i]:.5g}" for column in values.values())] for i in order)
    write_table(out / "traits.tsv", ["eid", *values], rows)
    fields = phenotypes.draw_phenotypes(seed, age, values["vessel_width"], values["vessel_tortuosity"])
    phenotypes.write_phenotypes(out / "phenotypes.tsv", ids, fields)


def estimate_bytes(settings: Settings) -> int:
    """Estimate the number of bytes that a run with these settings writes."""
    people = settings.participants
    photographs_bytes = 2 * people * _JPEG_BYTES
    genotype_bytes = settings.snps * (people / 4 + 40) + 22 * 20 * people
    vcf_bytes = settings.genes * 10 * (people * _VCF_BYTES_PER_CALL + 150)
    return int(photographs_bytes + genotype_bytes + vcf_bytes)


def _claim(out: Path, settings: Settings) -> bool:
    """Check that ``out`` is empty or a run with these settings; return whether the run is complete."""
    request: dict[str, Any] = {"format": _FORMAT, "arguments": settings.to_dict()}
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give --out a folder")
    for path, complete in ((out / _TRUTH, True), (out / _WORK / "settings.json", False)):
        if path.exists():
            record = json.loads(path.read_text())
            if {key: record.get(key) for key in request} == request:
                return complete
            raise UserError(
                f"{out} holds a simulation with other arguments ({record.get('arguments')}); "
                "use the same arguments or another --out, or delete the folder"
            )
    if out.exists() and any(path.name != _WORK for path in out.iterdir()):
        raise UserError(f"{out} is not empty and not a simulation: give --out a new folder")
    (out / _WORK).mkdir(parents=True, exist_ok=True)
    write_json(out / _WORK / "settings.json", request)
    return False


def _save(path: Path, array: np.ndarray) -> None:
    with write_aside(path, "wb") as handle:
        np.save(handle, array)


@dataclass(frozen=True)
class _Genome:
    """The input that all chromosomes share."""

    out: Path
    seed: int
    ids: np.ndarray
    rows: int


def _write_one_chromosome(genome: _Genome, task: tuple[int, int, dict[int, np.ndarray]]) -> None:
    number, snps, weights = task
    folder = genome.out / "genotypes"
    sums = genotypes.write_chromosome(folder, genome.seed, number, snps, genome.ids, weights, genome.rows)
    _save(genome.out / _WORK / f"chr{number}.npy", sums)  # last: its presence means that the chromosome is written


def _write_genotypes(
    out: Path, settings: Settings, counts: list[int], ids: np.ndarray, plan: traits.Plan, workers: int
) -> np.ndarray:
    """Write the missing chromosomes; return the SNP sums of all participants, float64, shape (rows, N)."""
    tasks = [
        (number, snps, plan.weights.get(number, {}))
        for number, snps in enumerate(counts, start=1)
        if not (out / _WORK / f"chr{number}.npy").exists()
    ]
    genome = _Genome(out, settings.seed, ids, len(plan.sd))
    parallel.run_parts(
        _write_one_chromosome,
        genome,
        tasks,
        [1] * len(tasks),
        argparse.Namespace(workers=workers, scheduler=None),
        "genotypes",
        "chromosome",
        processes=True,
    )
    return sum(np.load(out / _WORK / f"chr{number}.npy") for number in range(1, 23))


def _write_burden(
    out: Path, settings: Settings, genes: list[rare_variants.Gene], planted: list[int], ids: np.ndarray
) -> np.ndarray:
    """Write the VCF if it is missing; return the carriers of planted genes, bool, shape (genes, N)."""
    kept = out / _WORK / "carriers.npy"
    if not kept.exists():
        path = out / "burden" / "rare.vep.vcf.gz"
        _save(kept, rare_variants.write_vcf(path, settings.seed, genes, planted, ids))
    return np.load(kept)


def _bad_images(seed: int, ids: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"file": photographs.photograph_name(int(ids[i]), eye), "eid": int(ids[i]), "eye": eye, "kind": kind}
        for (i, eye), kind in cohort.bad_photographs(seed, len(ids)).items()
    ]
