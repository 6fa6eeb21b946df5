"""Our counterpart of ``plink2 --score``, for benchmarks.genetics: matched weights in, sums out, in one process.

``python -m benchmarks.genetics.score_process COHORT.bed WEIGHTS.npz SUMS.npy``; the weights are those of :func:`save`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from preprocess.genetics.genotypes import open_genotypes
from preprocess.genetics.pgs.score_pass import ScorePass, Weights


def save(path: Path, drawn: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Write (variants, weights per copy of ALT) of each score."""
    ends = np.cumsum([len(variant) for variant, _ in drawn])
    variant, weight = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    np.savez(path, variant=variant, weight=weight, ends=ends)


def main(cohort: Path, weights_file: Path, out: Path) -> None:
    """Score everybody's hard calls and write float64 sums, shape (participants, scores)."""
    stored, weights = np.load(weights_file), Weights()
    for variant, weight in zip(
        *(np.split(stored[name], stored["ends"][:-1]) for name in ("variant", "weight")), strict=True
    ):
        weights.add(variant, weight, np.ones(len(variant), dtype=bool))
    genotypes = open_genotypes(cohort)
    score_pass = ScorePass(genotypes, weights, np.ones(len(genotypes.samples), dtype=bool), hard_calls=True)
    np.save(out, np.concatenate([sums for _, sums in score_pass.blocks()]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
