"""The cohort of ``benchmarks/quality``: simulated, preprocessed by the real commands, decoded once for the probes.

The simulator runs with its default effects. The genome is small (few SNPs, only the scores and genes that matter), so
that most of what the genome decoder must predict has something to do with the photographs: the case that favours
genetics most. ``snps=20000, scores=12, genes=220`` are the simulator's defaults.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import python, run
from mrmfast.data.dataset import DataConfig, Dataset, open_dataset
from mrmfast.data.loader import Loader
from mrmfast.ops.genome_unpack import unpack_genome
from preprocess.simulate.cohort import divide_snps
from preprocess.simulate.genotypes import make_chromosome
from preprocess.simulate.scores import Score, write_score

SEED = 0
STORED = 96  # side of the stored images, pixels
HELD_OUT, CHOOSING = 0.35, 0.3  # share of participants held out; of those, the share that choices may look at


@dataclass(frozen=True)
class CohortConfig:
    """What is simulated; see ``python -m preprocess simulate --help``."""

    participants: int = 4000
    snps: int = 2200
    scores: int = 3
    genes: int = 8


@dataclass
class Cohort:
    """Every photograph that preprocessing kept, with traits and genome of its participant; P photographs.

    Attributes
    ----------
    images_PCHW : Tensor, uint8
        Not augmented.
    genome_PF : ndarray of float32
        x_G, missing values filled.
    traits_PT : ndarray of float64
        Columns in the order of `trait_names`.
    person : ndarray of int64, (P,)
        Participant, by number.
    part : ndarray of str, (P,)
        ``train``, ``choose`` (for looking at while the protocol is made) or ``test`` (for the table).
    """

    images_PCHW: torch.Tensor
    genome_PF: np.ndarray
    traits_PT: np.ndarray
    trait_names: list[str]
    person: np.ndarray
    part: np.ndarray


def data_config(work: Path, image_size: int) -> DataConfig:
    """Return how the dataset is fed to training."""
    return DataConfig(
        path=str(work / "dataset"), image_size=image_size, unmatched="drop", threads=1, cache=str(work / "cache")
    )


def prepare(work: Path, config: CohortConfig) -> None:
    """Simulate and preprocess; what is finished is kept.

    Raises
    ------
    RuntimeError
        A command fails, or `work` holds another cohort.
    """
    raw, dataset = work / "raw", work / "dataset"
    sizes = [f"--{name}={getattr(config, name)}" for name in ("participants", "snps", "scores", "genes")]
    split = ("--out", str(dataset), "--test-fraction", str(HELD_OUT))
    commands = [
        ["simulate", "--out", str(raw), f"--seed={SEED}", *sizes],
        ["fundus", str(raw / "fundus"), *split, "--size", str(STORED), "--accept-unreadable"],
        ["snps", str(raw / "genotypes"), *split, "--reference=a2"],
        ["pgs", str(work / "scores"), *split, "--genotypes", str(raw / "genotypes"), "--min-overlap=0.5"],
        ["burden", str(raw / "burden" / "rare.vep.vcf.gz"), *split],
    ]
    for arguments in commands:
        done = work / f"{arguments[0]}.done"
        command_line = " ".join(arguments)
        if done.exists() and done.read_text() == command_line:
            continue
        if arguments[0] == "pgs":
            write_scores(raw, work / "scores", config)
        seconds, _ = run(python("-m", "preprocess", *arguments))
        done.write_text(command_line)
        print(f"      {arguments[0]}: {seconds:.0f} s", flush=True)


def write_scores(raw: Path, folder: Path, config: CohortConfig) -> None:
    """Write scoring files of traits: the simulator's own, and one more for each trait that SNPs affect directly.

    As if all these traits had been studied: such a score holds the planted weights.
    """
    truth = json.loads((raw / "truth.json").read_text())
    counts = divide_snps(config.snps)
    genome = [make_chromosome(SEED, number, snps) for number, snps in enumerate(counts, start=1)]
    shutil.copytree(raw / "pgs", folder, dirs_exist_ok=True)
    for number, trait in enumerate(trait for trait in truth["traits"] if trait["snps"]):
        chromosome, index = (np.array([snp[key] for snp in trait["snps"]]) for key in ("chromosome", "index"))
        weight = np.array([snp["effect"] for snp in trait["snps"]]) / trait["sd"]
        by_ref = np.zeros(len(index), dtype=bool)
        score = Score(f"PGS{800001 + number}", 100 + number, chromosome, index, weight, by_ref)
        write_score(folder, SEED, score, genome)


def declared_shares(work: Path) -> dict[str, float]:
    """Return what share of each trait's variance the simulator gives to genetics."""
    truth = json.loads((work / "raw" / "truth.json").read_text())
    shares = {trait["name"]: trait["variance_shares"] for trait in truth["traits"]}
    return {name: share["snps"] + share["score"] + share["genes"] for name, share in shares.items()}


def genome_columns(work: Path, modalities: Sequence[str]) -> np.ndarray:
    """Return which columns of ``genome_PF`` belong to `modalities`, bool, shape (F,)."""
    dataset = open_dataset(DataConfig(path=str(work / "dataset"), unmatched="drop", cache=str(work / "cache")))
    spec = dataset.genome_spec()
    dataset.source.close()
    assert spec is not None
    return np.concatenate([np.full(features, name in modalities) for name, _, features in spec.modalities])


def open_cohort(work: Path, image_size: int) -> Cohort:
    """Read everyone's photographs without augmentation, once, through the project's loader."""
    config = replace(data_config(work, image_size), split="all", rotation=0.0, flip=0.0)
    dataset = open_dataset(config)
    spec = dataset.genome_spec()
    assert spec is not None
    loader = Loader(
        dataset, config, seed=0, batch=256, micro_batch=256, rank=0, world=1, device=torch.device("cpu")
    )  # fmt: skip
    keys: list[str] = []
    images, genomes = [], []
    for batch in loader.batches(0, end=len(loader.sampler)):
        images.append(batch.views[0].clone())
        genomes.append(unpack_genome(batch.packed, batch.present, spec.modalities, spec.fill)[0].numpy())
        keys += batch.keys
    dataset.source.close()
    participants = _participants(dataset, keys)
    names, traits = _traits(work / "raw" / "traits.tsv")
    training = dataset.manifest.splits.training(participants)
    choosing = [_draw(participant) < CHOOSING for participant in participants]
    part = np.where(training, "train", np.where(choosing, "choose", "test"))
    cohort = Cohort(
        images_PCHW=torch.cat(images),
        genome_PF=np.concatenate(genomes),
        traits_PT=np.array([traits[participant] for participant in participants]),
        trait_names=names,
        person=np.unique(participants, return_inverse=True)[1],
        part=part,
    )
    return cohort


def _participants(dataset: Dataset, keys: list[str]) -> list[str]:
    by_key = dict(zip(dataset.table.key.tolist(), dataset.table.participant.tolist(), strict=True))
    return [by_key[key] for key in keys]


def _traits(path: Path) -> tuple[list[str], dict[str, list[float]]]:
    with path.open() as file:
        header, *rows = csv.reader(file, delimiter="\t")
    return header[1:], {row[0]: [float(value) for value in row[1:]] for row in rows}


def _draw(participant: str) -> float:
    """Return a number in [0, 1) that depends on the participant alone."""
    return int.from_bytes(hashlib.sha256(f"choose:{participant}".encode()).digest()[:8], "big") / 2**64
