"""The commands ``snps``, ``pgs`` and ``burden`` against bio2zarr, ``plink2 --score`` and a plain pgenlib loop."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pgenlib
from bed_reader import open_bed

from benchmarks.genetics import score_process
from benchmarks.genetics.dataset import write_bed, write_rare_bed, write_scores
from benchmarks.harness import Bench, median, median_run, python, run
from mrmfast.data.genetics.store import GenomeStore
from preprocess.genetics.genotypes import Genotypes, open_genotypes

OPENBLAS = Path("/usr/lib/x86_64-linux-gnu/openblas-pthread")  # of Debian's libopenblas0-pthread


def _clear(path: Path) -> Callable[[], None]:
    return partial(shutil.rmtree, path, ignore_errors=True)


def snps(bench: Bench, work: Path, arguments: argparse.Namespace) -> None:
    """Convert 100,000 participants x 5,000 SNPs, every SNP kept."""
    participants, variants = 100_000, 5_000
    write_bed(work / "cohort", participants, variants, missing=0.01)
    ours, theirs = work / "ds", work / "theirs.zarr"
    command = python("-m", "preprocess", "snps", str(work / "cohort.bed"), "--out", str(ours))
    command += ["--reference", "a2", "--stride", "1"]
    seconds, peak = median_run(command, arguments.repeats, _clear(ours))
    rows = np.sort(np.random.default_rng(0).choice(participants, 500, replace=False))
    with open_bed(work / "cohort.bed") as bed:
        expected = bed.read(index=(rows, slice(None)), dtype="int8")
    expected[expected == -127] = 3
    modality = GenomeStore.open(str(ours), ["snps"], cache=str(work / "cache")).modalities[0]
    packed = modality.take(rows)
    codes = ((packed[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3).reshape(len(rows), -1)[:, :variants]
    bench.gate("snps: codes equal bed-reader's", np.array_equal(codes, expected))
    bench.figure("snps 100,000 x 5,000: python -m preprocess snps", seconds, "s")
    bench.figure("snps 100,000 x 5,000: peak memory", peak / 1e6, "MB")
    ratio = None
    if arguments.plink2zarr is None:
        bench.skip("bio2zarr", "plink2zarr is not on PATH; pip install bio2zarr[all] into its own environment")
    else:
        convert = [arguments.plink2zarr, "convert", "--force", "--no-progress", str(work / "cohort"), str(theirs)]
        their_seconds, their_peak = median_run(convert, arguments.repeats, _clear(theirs))
        bench.figure("snps 100,000 x 5,000: bio2zarr plink2zarr convert", their_seconds, "s")
        bench.figure("snps 100,000 x 5,000: bio2zarr's peak memory", their_peak / 1e6, "MB")
        ratio = their_seconds / seconds
        # bio2zarr's default is one process; our command uses one thread per core.
        cores = len(os.sched_getaffinity(0))
        many, many_peak = median_run([*convert, "--worker-processes", str(cores)], arguments.repeats, _clear(theirs))
        bench.figure(f"snps 100,000 x 5,000: bio2zarr with {cores} processes", many, "s")
        bench.figure(f"snps 100,000 x 5,000: bio2zarr's peak memory with {cores} processes", many_peak / 1e6, "MB")
        bench.figure(f"snps 100,000 x 5,000: times faster than bio2zarr with {cores} processes", many / seconds, "x")
        bench.bar("snps 100,000 x 5,000: peak memory, share of bio2zarr's", peak / their_peak, "<=", 1)
    bench.bar("snps 100,000 x 5,000: times faster than bio2zarr", ratio, ">=", 10)


def scores(bench: Bench, work: Path, arguments: argparse.Namespace) -> None:
    """481 scores of 2,000 variants each on 2,000 participants x 50,000 variants.

    ``plink2 --score`` gets matched weights as one matrix of text and writes sums.
    :mod:`benchmarks.genetics.score_process` does the same work in one process of ours. The command does more: it reads
    and matches 481 files, records what becomes of every row and writes the store. Its peer is the same command with
    ``--engine plink2``. The command is also compared with plink2's scoring alone.
    """
    participants, variants, count = 2_000, 50_000, 481
    write_bed(work / "cohort", participants, variants, missing=0)
    drawn = write_scores(work / "files", work / "matrix.tsv", variants, count, rows=2_000)
    score_process.save(work / "weights.npz", drawn)
    ours, label = work / "ds", "481 scores"
    command = python("-m", "preprocess", "pgs", str(work / "files"), "--genotypes", str(work / "cohort.bed"))
    command += ["--out", str(ours), "--build", "GRCh38", "--test-fraction", "0"]
    whole, peak = median_run(command, arguments.repeats, _clear(ours))
    scoring = python(
        "-m", "benchmarks.genetics.score_process", *(str(work / name) for name in ("cohort.bed", "weights.npz"))
    )
    alone, _ = median_run([*scoring, str(work / "sums.npy")], arguments.repeats, lambda: None)
    bench.figure(f"{label}: python -m preprocess pgs, 481 files read and matched, store written", whole, "s")
    bench.figure(f"{label}: peak memory", peak / 1e6, "MB")
    bench.figure(f"{label}: our scoring alone, a process from matched weights to sums", alone, "s")
    with_openblas, same_command = None, None
    if arguments.plink2 is None:
        bench.skip("plink2", "not on PATH; apt-get install plink2")
    else:
        with_openblas = _plink2_scores(bench, work, arguments, count)
        _compare_scores(bench, ours, work)
        _compare_pass(bench, np.load(work / "sums.npy"), work)
        if with_openblas is not None:
            bench.figure(f"{label}: plink2 --score alone (OpenBLAS) over our whole command", with_openblas / whole, "x")
            theirs, _ = median_run(
                [*command, "--engine", "plink2"], arguments.repeats, _clear(ours), LD_LIBRARY_PATH=str(OPENBLAS)
            )
            bench.figure(f"{label}: our command with --engine plink2", theirs, "s")
            same_command = theirs / whole
    ratio = None if with_openblas is None else with_openblas / alone
    bench.bar(f"{label}: plink2 --score (OpenBLAS) over our scoring", ratio, ">=", 1)
    bench.bar(f"{label}: the command with --engine plink2 over --engine own", same_command, ">=", 1)


def _plink2_scores(bench: Bench, work: Path, arguments: argparse.Namespace, count: int) -> float | None:
    """Run ``plink2 --score`` with both kinds of BLAS; return the seconds with OpenBLAS."""
    score = [arguments.plink2, "--bfile", str(work / "cohort"), "--score", str(work / "matrix.tsv"), "1", "2"]
    score += ["header-read", "cols=scoresums", "--score-col-nums", f"3-{count + 2}", "--out", str(work / "plink")]
    seconds: dict[str, float] = {}
    # plink2 is linked with libblas.so.3, whichever comes first on the search path.
    for name, folder in (("OpenBLAS", OPENBLAS), ("Debian's default BLAS", arguments.plain_blas)):
        if not (folder / "libblas.so.3").exists():
            bench.skip(f"plink2 with {name}", f"{folder} is absent; apt-get install libopenblas0-pthread libblas3")
            continue
        # The default BLAS is an order of magnitude slower: once is enough.
        repeats = arguments.repeats if name == "OpenBLAS" else 1
        seconds[name], peak = median_run(score, repeats, lambda: None, LD_LIBRARY_PATH=str(folder))
        bench.figure(f"481 scores: plink2 --score with {name}", seconds[name], "s")
        bench.figure(f"481 scores: plink2's peak memory with {name}", peak / 1e6, "MB")
    return seconds.get("OpenBLAS")


def _compare_scores(bench: Bench, ours: Path, work: Path) -> None:
    modality = GenomeStore.open(str(ours), ["pgs"], cache=str(work / "cache")).modalities[0]
    sums = modality.rows * modality.features.scale.astype(float) + modality.features.mean
    theirs = _plink_sums(work)
    assert theirs.index.tolist() == modality.participants.tolist(), "order of participants"
    expected = theirs[[f"{name}_SUM" for name in modality.features.name]].to_numpy()
    # plink2 prints six digits: half a unit of the last one of the largest sum.
    error = float(np.abs(sums - expected).max() / np.abs(expected).max())
    bench.figure("481 scores: largest difference from plink2, relative to the largest sum", error, "")
    bench.gate("481 scores: the command agrees with plink2 within 5e-6", error <= 5e-6)


def _compare_pass(bench: Bench, sums: np.ndarray, work: Path) -> None:
    theirs = _plink_sums(work)
    expected = theirs[[name for name in theirs if name.endswith("_SUM") and name.startswith("PGS")]].to_numpy()
    error = np.abs(sums - expected).max() / np.abs(expected).max()
    bench.gate("481 scores: the pass agrees with plink2 within 5e-6", bool(error <= 5e-6))


def _plink_sums(work: Path) -> pd.DataFrame:
    return pd.read_csv(work / "plink.sscore", sep=r"\s+", dtype={"#IID": str}).set_index("#IID")


def burden(bench: Bench, work: Path, arguments: argparse.Namespace) -> None:
    """Burden of a cohort of 100,000 and of one of 2,000, from .pgen, against a plain pgenlib loop."""
    if arguments.plink2 is None:
        bench.skip("pgenlib loop", "plink2, which makes the .pgen, is not on PATH")
        bench.bar("burden: our variants/s over the plain loop's", None, ">=", 1)
        return
    for participants, variants in ((100_000, 5_000), (2_000, 50_000)):
        _burden(bench, work / str(participants), arguments, participants, variants)


def _burden(bench: Bench, work: Path, arguments: argparse.Namespace, participants: int, variants: int) -> None:
    """The loop reads every second variant (those annotated as loss of function) densely and joins genes.

    It neither reads the annotation, nor filters by frequency, nor writes anything.
    """
    label = f"burden {participants:,} x {variants:,}"
    write_rare_bed(work, participants, variants)
    run([arguments.plink2, "--bfile", str(work / "rare"), "--make-pgen", "--out", str(work / "rare")])
    ours = work / "ds"
    command = python("-m", "preprocess", "burden", str(work / "rare.pgen"), "--out", str(ours), "--mask", "lof")
    command += ["--annotations", str(work / "annotations.txt")]
    seconds, peak = median_run(command, arguments.repeats, _clear(ours))
    bench.figure(f"{label}: python -m preprocess burden, whole command", variants / seconds, "annotated variants/s")
    bench.figure(f"{label}: peak memory", peak / 1e6, "MB")

    def loop() -> np.ndarray:
        genes: dict[int, np.ndarray] = {}
        calls = np.empty(participants, dtype=np.int8)
        with pgenlib.PgenReader(str(work / "rare.pgen").encode()) as reader:
            for variant in range(0, variants, 2):
                reader.read(variant, calls)
                gene = genes.setdefault(variant // 10, np.zeros(participants, dtype=bool))
                gene |= calls > 0
        return np.stack(list(genes.values()), axis=1)

    modality = GenomeStore.open(str(ours), ["burden"], cache=str(work / "cache")).modalities[0]
    bits = np.unpackbits(modality.rows, axis=1, bitorder="little", count=len(modality.features))
    order = [int(name.removeprefix("ENSG")) for name in modality.features.name]
    genotypes = open_genotypes(work / "rare.pgen")
    expected = loop()
    bench.gate(f"{label}: bits of the command equal the loop's", np.array_equal(bits, expected[:, order]))
    bench.gate(f"{label}: sparse reads give the loop's bits", np.array_equal(_sparse(genotypes, variants), expected))
    theirs = median(loop, arguments.repeats)
    sparse = median(lambda: _sparse(genotypes, variants), arguments.repeats)
    bench.figure(f"{label}: plain pgenlib loop, dense reads", variants / 2 / theirs, "counted variants/s")
    bench.figure(f"{label}: our sparse reads in process, with frequencies", variants / 2 / sparse, "counted variants/s")
    bench.bar(f"{label}: our variants/s over the plain loop's", theirs / sparse, ">=", 1)


def _sparse(genotypes: Genotypes, variants: int) -> np.ndarray:
    genes = np.zeros((variants // 10, len(genotypes.samples)), dtype=bool)
    counted = np.arange(0, variants, 2)
    carriers = genotypes.carriers(counted, np.zeros(len(counted), dtype=bool), 256 << 20)
    has_call = carriers.copies > 0
    genes[counted[carriers.variant[has_call]] // 10, carriers.sample[has_call]] = True
    return genes.T
