"""One simulated cohort in every format: the same scores and the same burden, with and without plink2.

The cohort has withdrawn samples, missing calls, rare, common and ALT-major variants, and some of them on X. Its
dosages lie within 0.1 of the calls and on the grid of a .pgen, so that no format has to round them.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pgenlib
import pytest

from preprocess.genetics.genotypes import Genotypes, open_genotypes
from tests.helpers.genetics_cases import (
    RULE,
    csq,
    needs_plink2,
    opened,
    people,
    preprocess,
    scoring_file,
    unpacked,
    write_bed,
    write_vcf,
)
from tests.preprocess.genetics.test_burden import HIGH, slow_burden
from tests.preprocess.genetics.test_genotypes import write_bgen

SAMPLES, VARIANTS = 200, 60
LABELS = [str(1 + number * 22 // 54) if number < 54 else "X" for number in range(VARIANTS)]
# What a command must be told of each format, where it does not name its own REF.
REFERENCE = {"bed": ("--reference", "a2"), "bgen": ("--reference", "ref-first")}
FORMATS = ("bed", "pgen", "bgen", "vcf", "gp", "folder")


class Cohort:
    """Copies of ALT and dosages, shape (variants, samples), and the ids; NaN and -9 are missing."""

    def __init__(self) -> None:
        rng = np.random.default_rng(4)
        self.ids = ["-1", *people(SAMPLES - 2), "-2"]
        frequency = rng.choice([0.003, 0.006, 0.3, 0.995], VARIANTS)
        calls = rng.binomial(2, frequency[:, None], (VARIANTS, SAMPLES))
        steps = rng.integers(0, 1600, calls.shape) * np.where(calls == 2, -1, 1)
        self.dosages = np.clip(calls + steps / 16384, 0, 2)
        missing = rng.random(calls.shape) < 0.02
        self.dosages[missing] = np.nan
        self.calls = np.where(missing, -9, calls).astype(np.int8)

    def write(self, folder: Path, name: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return getattr(self, f"_{name}")(folder, np.arange(VARIANTS), np.arange(SAMPLES), "x")

    def _bed(self, folder: Path, rows: np.ndarray, order: np.ndarray, stem: str) -> Path:
        calls = np.where(self.calls < 0, -127, self.calls)[rows][:, order].T
        columns = {"chromosome": [LABELS[n] for n in rows], "sid": [f"v{n}" for n in rows]}
        columns |= {"bp_position": (100 + rows).tolist(), "allele_1": ["G"] * len(rows), "allele_2": ["A"] * len(rows)}
        return write_bed(folder / f"{stem}.bed", calls, [self.ids[n] for n in order], **columns)

    def _pgen(self, folder: Path, rows: np.ndarray, order: np.ndarray, stem: str) -> Path:
        path = folder / f"{stem}.pgen"
        writer = pgenlib.PgenWriter(
            str(path).encode(), len(order), variant_ct=len(rows), nonref_flags=False, dosage_present=True
        )
        for row in np.nan_to_num(self.dosages[rows][:, order], nan=-9).astype(np.float32):
            writer.append_dosages(np.ascontiguousarray(row))
        writer.close()
        table = [f"{LABELS[n]}\t{100 + n}\tv{n}\tA\tG" for n in rows]
        path.with_suffix(".pvar").write_text("\n".join(["#CHROM\tPOS\tID\tREF\tALT", *table]) + "\n")
        path.with_suffix(".psam").write_text("\n".join(["#IID", *(self.ids[n] for n in order)]) + "\n")
        return path

    def _bgen(self, folder: Path, rows: np.ndarray, order: np.ndarray, stem: str) -> Path:
        records = []
        for n in rows:
            dosage = self.dosages[n][order]
            # Copies of ALT are 0 or 1 below a dosage of 1, and 1 or 2 above.
            none, one = np.where(dosage <= 1, [1 - dosage, dosage], [0 * dosage, 2 - dosage])
            records.append((LABELS[n], f"v{n}", 100 + n, ["A", "G"], np.stack([none, one], axis=1)))
        return write_bgen(folder / f"{stem}.bgen", records, [self.ids[n] for n in order], bits=16)

    def _vcf(self, folder: Path, rows: np.ndarray, order: np.ndarray, stem: str, field: str = "DS") -> Path:
        number = {"DS": "1", "GP": "G"}[field]
        header = ["##fileformat=VCFv4.2", *(f"##contig=<ID={label}>" for label in dict.fromkeys(LABELS))]
        header.append('##FORMAT=<ID=GT,Number=1,Type=String,Description="G">')
        header.append(f'##FORMAT=<ID={field},Number={number},Type=Float,Description="D">')
        columns = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"]
        lines = [*header, "\t".join([*columns, *(self.ids[n] for n in order)])]
        for n in rows:
            cells = [self._cell(self.calls[n, s], self.dosages[n, s], field) for s in order]
            lines.append("\t".join([LABELS[n], str(100 + n), f"v{n}", "A", "G", ".", ".", ".", f"GT:{field}", *cells]))
        path = folder / f"{stem}.vcf"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _gp(self, folder: Path, rows: np.ndarray, order: np.ndarray, stem: str) -> Path:
        return self._vcf(folder, rows, order, stem, "GP")

    @staticmethod
    def _cell(call: int, dosage: float, field: str) -> str:
        if call < 0:
            return "./.:."
        gt = ("0/0", "0/1", "1/1")[call]
        if field == "DS":
            return f"{gt}:{dosage:.7f}"
        probabilities = (1 - dosage, dosage, 0) if dosage <= 1 else (0, 2 - dosage, dosage - 1)
        return f"{gt}:" + ",".join(f"{value:.7f}" for value in probabilities)

    def _folder(self, folder: Path, *_: object) -> Path:
        """A file per chromosome, each with its samples in an order of its own, and a file that macOS leaves."""
        rng = np.random.default_rng(1)
        (folder / "per").mkdir()
        for label in dict.fromkeys(LABELS):
            rows = np.flatnonzero(np.array(LABELS) == label)
            self._bgen(folder / "per", rows, rng.permutation(SAMPLES), f"chr{label}")
        (folder / "per/._chr1.bgen").write_text("junk")
        return folder / "per"


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return Cohort()


@pytest.fixture(params=[False, pytest.param(True, marks=needs_plink2)], ids=["python", "plink2"])
def plink2_is_used(request, monkeypatch) -> bool:
    if not request.param:
        monkeypatch.setattr("preprocess.genetics.genotypes.convert.shutil.which", lambda _: None)
    return bool(request.param)


def run(*arguments: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that plink2 is not installed
        preprocess(*arguments)


def reference_of(name: str) -> tuple[str, ...]:
    return REFERENCE.get("bgen" if name == "folder" else name, ())


def write_scores(folder: Path) -> list[dict[int, tuple[str, float]]]:
    """Write three scores with effect alleles of both kinds; return variant -> (effect allele, weight) of each."""
    rng = np.random.default_rng(2)
    scores = []
    for number in range(3):
        rows = np.sort(rng.choice(VARIANTS, 40, replace=False))
        score = {int(n): ("AG"[int(rng.integers(2))], round(float(rng.normal(0, 0.1)), 4)) for n in rows}
        lines = [f"{LABELS[n]} {100 + n} {a} {'G' if a == 'A' else 'A'} {w!r}" for n, (a, w) in score.items()]
        columns = "chr_name chr_position effect_allele other_allele effect_weight"
        scoring_file(folder / f"s{number}.txt", columns, lines, pgs_id=f"S{number}", genome_build="GRCh38")
        scores.append(score)
    return scores


def slow_score(score: dict[int, tuple[str, float]], copies: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Sum weight x copies of the effect allele, with the training mean for a missing value."""
    total = np.zeros(copies.shape[1])
    for variant, (allele, weight) in score.items():
        row = copies[variant]
        filled = np.where(np.isnan(row), np.nanmean(row[train]), row)
        total += weight * (filled if allele == "G" else 2 - filled)
    return total


@pytest.mark.parametrize("hard_calls", [True, False])
def test_scores_of_all_formats_equal_a_slow_loop(tmp_path, cohort, plink2_is_used, hard_calls):
    scores = write_scores(tmp_path / "scores")
    kept = slice(1, SAMPLES - 1)
    copies = np.where(cohort.calls < 0, np.nan, cohort.calls) if hard_calls else cohort.dosages
    train = np.array([RULE.of(name) == "train" for name in cohort.ids[kept]])
    for name in FORMATS if hard_calls else FORMATS[1:]:
        source, out = cohort.write(tmp_path / name, name), tmp_path / "out" / name
        more = ("--hard-calls",) if hard_calls else ()
        run("pgs", tmp_path / "scores", "--genotypes", source, "--out", out, *more)
        modality = opened(out, "pgs")
        order = [cohort.ids[kept].index(participant) for participant in modality.participants]
        for column, score in enumerate(scores):
            found = modality.rows[:, column] * modality.features.scale[column].astype(float)
            expected = slow_score(score, copies[:, kept], train)[order]
            np.testing.assert_allclose(found + modality.features.mean[column], expected, atol=5e-6, err_msg=name)
        settings = json.loads((out / "reports/pgs.json").read_text())["settings"]
        assert settings["values"] == ("hard calls" if hard_calls else "dosages")
        assert not any(out.glob(".pgs*.genotypes")), "PGEN copies are removed"
        assert json.loads((out / "reports/pgs.json").read_text())["variants"]["in_files"] == VARIANTS


@pytest.mark.parametrize("annotation", ["table", "vep"])
def test_burden_of_all_formats_equals_a_slow_loop(tmp_path, cohort, plink2_is_used, annotation):
    genes = [f"G{number % 7}_{LABELS[number]}" for number in range(VARIANTS)]
    table = tmp_path / "table"
    table.write_text("".join(f"v{number} {gene} lof\n" for number, gene in enumerate(genes)))
    rows = [(LABELS[n], 100 + n, "A", "G", [csq("G", *HIGH, gene)], {}) for n, gene in enumerate(genes)]
    sites = write_vcf(tmp_path / "sites.vcf", rows, [])
    autosomal = np.array([label != "X" for label in LABELS])
    expected = slow_burden(
        cohort.calls[autosomal][:, 1:-1], [g for g, a in zip(genes, autosomal, strict=True) if a], 0.01
    )
    assert len(expected) > 10
    ledgers = []
    for name in FORMATS:
        source, out = cohort.write(tmp_path / name, name), tmp_path / "out" / name
        more = ("--annotations", sites)
        if annotation == "table":
            more = ("--annotations", table, "--mask", "lof", *reference_of(name))
        run("burden", source, "--out", out, "--code", "copies", *more)
        modality = opened(out, "burden")
        order = [cohort.ids[1:-1].index(participant) for participant in modality.participants]
        found = dict(zip(modality.features.name, unpacked(modality).T, strict=True))
        assert found.keys() == expected.keys(), name
        for gene, row in expected.items():
            np.testing.assert_array_equal(found[gene], row[order], err_msg=f"{name} {gene}")
        ledgers.append(pd.read_csv(out / "reports/burden_variants.tsv.gz", sep="\t"))
        assert ledgers[-1].equals(ledgers[0]), name
        assert not any(out.glob(".burden*.genotypes")), "PGEN copies are removed"


def test_a_vcf_with_gt_and_ds_has_the_calls_of_gt(tmp_path, plink2_is_used):
    """Calls are never made anew from dosages: with plink2 a quarter of them would become missing."""
    rng = np.random.default_rng(0)
    cohort = Cohort()
    cohort.dosages = rng.uniform(0, 2, cohort.dosages.shape)  # far from whole numbers
    source = cohort.write(tmp_path, "vcf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        genotypes = open_genotypes(source, cache=tmp_path / "cache")
        scored = open_genotypes(source, cache=tmp_path / "cache", dosages=True)
    assert (type(genotypes.files[0]).__name__ == "Converted") is plink2_is_used
    every = np.arange(VARIANTS)
    np.testing.assert_array_equal(genotypes.hard_calls(every), np.maximum(cohort.calls, -1)[:, 1:-1])
    known = cohort.calls[:, 1:-1] >= 0
    grid = np.floor(cohort.dosages * 16384 + 0.5)[:, 1:-1] / 16384
    np.testing.assert_array_equal(np.isnan(scored.dosages(every)), ~known)
    np.testing.assert_allclose(scored.dosages(every)[known], grid[known], atol=1 / 16384)


def test_a_vcf_without_ds_for_a_sample_has_its_gt(tmp_path, plink2_is_used):
    """As plink2 reads it: ``0/1:.`` is one copy."""
    header = "".join(
        f'##FORMAT=<ID={name},Number=1,Type={kind},Description="x">\n'
        for name, kind in (("GT", "String"), ("DS", "Float"))
    )
    columns = "\t".join([*["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"], *people(4)])
    cells = "\t".join(["0/1:.", "./.:1.4", "1/1:1.75", "./.:."])
    record = f"1\t10\trs1\tA\tG\t.\t.\t.\tGT:DS\t{cells}\n"
    (tmp_path / "x.vcf").write_text(f"##fileformat=VCFv4.2\n##contig=<ID=1>\n{header}{columns}\n{record}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        genotypes = open_genotypes(tmp_path / "x.vcf", cache=tmp_path / "cache", dosages=True)
    np.testing.assert_allclose(genotypes.dosages(np.arange(1))[0], [1, 1.4, 1.75, np.nan], atol=0.5 / 16384)


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_counts_and_carriers_agree_with_the_calls(tmp_path, cohort, name):
    """The reference of every fast path: all calls, spread out."""
    genotypes: Genotypes = open_genotypes(cohort.write(tmp_path, name))
    table = genotypes.variants
    rng = np.random.default_rng(3)
    rows = rng.permutation(VARIANTS)[:40]
    order = [cohort.ids.index(participant) for participant in genotypes.samples]
    calls = np.maximum(cohort.calls, -1)[[int(v[1:]) for v in table["id"]]][:, order]
    np.testing.assert_array_equal(genotypes.hard_calls(rows), calls[rows])
    people_of_block = rng.permutation(len(order))[:50]
    np.testing.assert_array_equal(genotypes.hard_calls(rows, people_of_block), calls[rows][:, people_of_block])
    np.testing.assert_array_equal(genotypes.dosages(rows, slice(5, 9)) < 0, False)
    counts = np.stack([(calls == copies).sum(axis=1) for copies in (0, 1, 2, -1)], axis=1)
    np.testing.assert_array_equal(genotypes.genotype_counts(rows), counts[rows])
    count_ref = rng.random(len(rows)) < 0.5
    copies = np.where(count_ref[:, None] & (calls[rows] >= 0), 2 - calls[rows], calls[rows])
    for memory in (1, 1 << 20):
        found_counts, carriers = genotypes.count_and_list(
            rows, count_ref, lambda counted, _: counted[:, 0] < counted[:, :3].sum(axis=1) - 2, memory
        )
        np.testing.assert_array_equal(found_counts, counts[rows])
        listed = counts[rows][:, 0] < counts[rows][:, :3].sum(axis=1) - 2
        assert 0 < listed.sum() < len(rows)
        dense = np.zeros_like(copies)
        dense[carriers.variant, carriers.sample] = np.maximum(carriers.copies, -1)
        np.testing.assert_array_equal(dense, np.where(listed[:, None], copies, 0))
        assert (np.diff(carriers.variant) >= 0).all()
