"""Simulated genetics in the shapes that ``benchmarks.genetics`` measures; the same on every run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mrmfast.arithmetic import ceil_div
from mrmfast.data.genetics.store import Encoding, FeatureTable, ModalityWriter

SIZES = {"snps": 7854, "pgs": 481, "burden": 18574}
ENCODINGS: dict[str, Encoding] = {"snps": "genotype", "pgs": "float", "burden": "binary"}
BLOCK = 16_384  # rows drawn at a time: one shard file
WEIGHTS = np.array([f"{0.001 + 0.0009 * i:.5f}" for i in range(100)], dtype="S7")


def values(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Draw participants: SNPs with frequencies, 1 % missing calls; scores; rare bits."""
    generator = np.random.default_rng(seed)
    frequency = np.random.default_rng(1).uniform(0.01, 0.5, SIZES["snps"])
    draw = generator.integers(0, 256, (rows, SIZES["snps"]), dtype=np.uint8)
    thresholds = (np.stack([(1 - frequency) ** 2, 1 - frequency**2]) * 253).astype(np.uint8)
    codes = (draw > thresholds[0]).view(np.int8) + (draw > thresholds[1]).view(np.int8)
    codes[draw >= 253] = -1
    carried = np.random.default_rng(2).uniform(0, 6, SIZES["burden"]).astype(np.uint8)
    bits = generator.integers(0, 256, (rows, SIZES["burden"]), dtype=np.uint8) < carried
    scores = generator.standard_normal((rows, SIZES["pgs"]), dtype=np.float32)
    return {"snps": codes, "pgs": scores, "burden": bits.view(np.uint8)}


def feature_table(name: str) -> FeatureTable:
    """Name features; SNPs and genes in 22 groups, scores in four."""
    groups = 4 if name == "pgs" else 22
    group = np.sort(np.arange(SIZES[name]) % groups)
    return FeatureTable.build([f"{name}{i}" for i in range(SIZES[name])], [f"part{number}" for number in group])


def write_store(dataset: Path, packed: dict[str, np.ndarray], participants: int) -> None:
    """Stream a store: one drawn block of packed rows, its rows in another order for every shard."""
    ids = [str(1_000_000 + 7 * number) for number in range(participants)]
    for name, encoding in ENCODINGS.items():
        blocks = _shuffled(packed[name], participants)
        with ModalityWriter(dataset, name, encoding, ids, feature_table(name)) as writer:
            for block in blocks:
                writer.append_packed(block)


def _shuffled(block: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    for number, start in enumerate(range(0, rows, len(block))):
        order = np.random.default_rng(number).permutation(len(block))
        yield block[order[: rows - start]]


def write_bed(prefix: Path, samples: int, variants: int, missing: float) -> None:
    """Write a PLINK file set on 22 chromosomes: A1 = ALT, A2 = REF, positions 1000 apart."""
    generator = np.random.default_rng(3)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    chromosome = 1 + np.arange(variants) * 22 // variants
    with open(prefix.with_suffix(".fam"), "w") as file:
        file.writelines(f"{1000000 + i}\t{1000000 + i}\t0\t0\t0\t-9\n" for i in range(samples))
    with open(prefix.with_suffix(".bim"), "w") as file:
        file.writelines(f"{chromosome[i]}\trs{i}\t0\t{1000 * (i + 1)}\tG\tA\n" for i in range(variants))
    # PLINK's codes: 3 is no copy of A1, 2 one, 0 two, 1 missing.
    with open(prefix.with_suffix(".bed"), "wb") as bed:
        bed.write(b"\x6c\x1b\x01")
        for frequency in generator.uniform(0.02, 0.5, variants):
            draw = generator.random(samples, dtype=np.float32)
            codes = np.where(draw < frequency**2, 0, np.where(draw < frequency * (2 - frequency), 2, 3)).astype(
                np.uint8
            )
            codes[generator.random(samples, dtype=np.float32) < missing] = 1
            codes = np.pad(codes, (0, -samples % 4))
            bed.write((codes[0::4] | codes[1::4] << 2 | codes[2::4] << 4 | codes[3::4] << 6).tobytes())


def write_scores(
    folder: Path, matrix: Path, variants: int, scores: int, rows: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Write PGS Catalog files of `rows` variants each, and the same weights as one matrix for ``plink2 --score``.

    Returns
    -------
    list of (ndarray of int64, ndarray of float64)
        Of each score the variants and their weights per copy of A1.
    """
    drawn = []
    folder.mkdir(parents=True)
    generator = np.random.default_rng(4)
    chromosome = 1 + np.arange(variants) * 22 // variants
    columns = [b"rs%d\t%d\t%d\tG\tA\t" % (i, chromosome[i], 1000 * (i + 1)) for i in range(variants)]
    table = np.full((variants, scores), b"0", dtype=WEIGHTS.dtype)
    header = b"rsID\tchr_name\tchr_position\teffect_allele\tother_allele\teffect_weight\n"
    for score in range(scores):
        name = f"PGS{900001 + score}"
        chosen = np.sort(generator.choice(variants, rows, replace=False))
        weight = WEIGHTS[generator.integers(0, len(WEIGHTS), rows)]
        table[chosen, score] = weight
        drawn.append((chosen, weight.astype(float)))
        head = f"###PGS CATALOG SCORING FILE\n#pgs_id={name}\n#genome_build=GRCh38\n".encode() + header
        lines = (columns[i] + w + b"\n" for i, w in zip(chosen, weight.tolist(), strict=True))
        (folder / f"{name}.txt").write_bytes(head + b"".join(lines))
    with open(matrix, "wb") as file:
        file.write(b"ID\tA1\t" + b"\t".join(b"PGS%d" % (900001 + s) for s in range(scores)) + b"\n")
        for i, line in enumerate(table.tolist()):
            file.write(b"rs%d\tG\t" % i + b"\t".join(line) + b"\n")
    return drawn


def write_rare_bed(folder: Path, samples: int, variants: int) -> None:
    """Write rare variants and regenie's ``annotations.txt``: ten variants a gene, every second one ``lof``."""
    generator = np.random.default_rng(6)
    folder.mkdir(parents=True, exist_ok=True)
    gene = np.arange(variants) // 10
    chromosome = 1 + gene * 10 * 22 // variants
    with open(folder / "rare.fam", "w") as file:
        file.writelines(f"{1000000 + i}\t{1000000 + i}\t0\t0\t0\t-9\n" for i in range(samples))
    with open(folder / "rare.bim", "w") as file:
        file.writelines(f"{chromosome[i]}\tv{i}\t0\t{100 * (i + 1)}\tT\tC\n" for i in range(variants))
    with open(folder / "annotations.txt", "w") as file:
        file.writelines(f"v{i} ENSG{gene[i]:08d} {('lof', 'other')[i % 2]}\n" for i in range(variants))
    with open(folder / "rare.bed", "wb") as bed:
        bed.write(b"\x6c\x1b\x01")
        for i in range(variants):
            codes = np.full(ceil_div(samples, 4) * 4, 3, dtype=np.uint8)
            codes[generator.integers(0, samples, 1 + i % 5)] = 2
            codes[samples:] = 0
            bed.write((codes[0::4] | codes[1::4] << 2 | codes[2::4] << 4 | codes[3::4] << 6).tobytes())
