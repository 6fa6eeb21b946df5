"""Scoring files as users have them, and the verdict on each score.

Right values: sums that the test computes by hand from the calls it wrote; ``plink2 --score`` where it is installed;
:data:`BY_PGSCATALOG`, what ``pgscatalog.core`` 1.1.1 makes of an other allele (run once, in an environment of its own).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from preprocess.genetics.genotypes import open_genotypes
from preprocess.genetics.pgs import scoring_file as scoring
from preprocess.genetics.pgs.match import VariantIndex
from preprocess.genetics.pgs.matches import FATES
from tests.helpers.genetics_cases import (
    complaint,
    needs_plink2,
    opened,
    people,
    preprocess,
    random_calls,
    scoring_file,
    unpacked,
    write_bed,
)

PLACE = "chr_name chr_position effect_allele other_allele effect_weight"
# Other allele as written -> as if blank (None), or an allele that matches nothing.
BY_PGSCATALOG = {
    **{text: None for text in ("G/C", "A/G/T", "g/c", "G/", "/G", "G/N", "GA/G", "G//C")},
    **{text: "no match" for text in ("G, C", "G,C", "G|C", "N", "-", ".")},
}


@pytest.mark.parametrize("text", BY_PGSCATALOG)
def test_lists_of_alleles_by_the_rule_of_pgscatalog(tmp_path, text):
    path = tmp_path / "s.txt"
    path.write_text("#genome_build=GRCh38\n" + "\t".join(PLACE.split()) + f"\n1\t10\tG\t{text}\t1\n1\t20\tG\tA\t1\n")
    score = scoring.read_score(path, "GRCh38")
    variants = pd.DataFrame({"chromosome": 1, "position": [10, 20], "id": ".", "ref": "A", "alt": "G"})
    fates = [FATES[fate] for fate in VariantIndex(variants).match(score).fate]
    assert fates == (["matched"] * 2 if BY_PGSCATALOG[text] is None else ["matched"])
    assert score.counts["malformed"] == (0 if BY_PGSCATALOG[text] is None else 1)


def three_files(tmp_path: Path, spoil: dict[str, str], every: int = 3) -> tuple[Path, Path]:
    """Write one score several times; `spoil` is the other allele of every n-th row of each file."""
    pairs = ["AG", "CT", "GA", "TC", "AC", "GT", "TG", "CA"]
    rng = np.random.default_rng(5)
    weights = rng.normal(size=60).round(6).tolist()
    alleles = [pairs[k % 8] for k in range(60)]
    columns = {"allele_1": [pair[0] for pair in alleles], "allele_2": [pair[1] for pair in alleles]}
    bed = write_bed(tmp_path / "g/all.bed", random_calls(80, 60), people(80), **columns)
    for name, text in spoil.items():
        rows = []
        for k, (effect, other) in enumerate(alleles):
            third = "ACGT".replace(effect, "").replace(other, "")[0]
            given = text.format(other=other, third=third) if k % every == 0 else other
            rows.append(f"1\t{1000 + 10 * k}\t{effect}\t{given}\t{weights[k]}")
        (tmp_path / "s").mkdir(exist_ok=True)
        head = f"#pgs_id={name}\n#genome_build=GRCh38\n" + "\t".join(PLACE.split())
        (tmp_path / "s" / f"{name}.txt").write_text("\n".join([head, *rows]) + "\n")
    return bed, tmp_path / "s"


def test_a_list_counts_as_blank_and_a_score_that_loses_a_third_is_not_used(tmp_path, capsys):
    spoil = {"PGS1": "{other}", "PGS2": "{other}/{third}", "PGS3": "", "PGS4": "{other}, {third}", "PGS5": "?"}
    bed, scores = three_files(tmp_path, spoil)
    common = ("pgs", scores, "--genotypes", bed, "--ambiguous", "keep", "--test-fraction", 0)
    preprocess(*common, "--out", tmp_path / "d")
    told = capsys.readouterr().out
    modality = opened(tmp_path / "d", "pgs")
    assert modality.features.name.tolist() == ["PGS1", "PGS2", "PGS3"]
    assert np.ptp(unpacked(modality), axis=1).max() < 1e-6, "three times the same score"
    entries = {e["score"]: e for e in json.loads((tmp_path / "d/reports/pgs.json").read_text())["scores"]}
    assert [entries[name]["match_rate"] for name in entries] == [1, 1, 1, 2 / 3, 2 / 3]
    assert [entries[name]["malformed"] for name in entries] == [0, 0, 0, 20, 20]
    for name in ("PGS4", "PGS5"):
        assert f"malformed: {name}: 20 of 60 rows" in told
        assert f"excluded: {name}.txt: 40 of 60 rows match, less than --min-overlap 0.75 (20 malformed)" in told
    preprocess(*common, "--out", tmp_path / "e", "--min-overlap", 0.5)
    assert len(opened(tmp_path / "e", "pgs").features) == 5
    assert "must be from 0 to 1" in complaint(capsys, *common, "--out", tmp_path / "f", "--min-overlap", 75)


@pytest.mark.parametrize(
    ("every", "overlap", "is_used"), [(4, 0.75, True), (4, 0.76, False), (2, 0.5, True), (3, 0.75, False)]
)
def test_the_bar_is_inclusive(tmp_path, capsys, every, overlap, is_used):
    bed, scores = three_files(tmp_path, {"PGS1": "?"}, every)
    command = (
        "pgs",
        scores,
        "--genotypes",
        bed,
        "--out",
        tmp_path / "d",
        "--ambiguous",
        "keep",
        "--min-overlap",
        overlap,
    )
    if is_used:
        preprocess(*command)
    else:
        assert "lower --min-overlap" in complaint(capsys, *command)


def test_chromosomes_and_positions_that_pandas_wrote(tmp_path):
    bed = write_bed(tmp_path / "g/a.bed", random_calls(40, 4), people(40), chromosome=["1", "2", "10", "23"])
    rows = [f"{chromosome} {1000 + 10 * n}.0 G A 1" for n, chromosome in enumerate(("1.0", "2.0", "10.0", "23.0"))]
    path = scoring_file(tmp_path / "s.txt", PLACE, rows, genome_build="GRCh38")
    matches = VariantIndex(open_genotypes(bed).variants).match(scoring.read_score(path, "GRCh38"))
    assert matches.variant.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("given", ["NR", "nr", "NA", "", "None"])
def test_own_files_without_an_id_are_named_by_their_files(tmp_path, given):
    bed = write_bed(tmp_path / "g/a.bed", random_calls(40, 4), people(40))
    for name, weight in (("mine.txt", 1), ("yours.txt.gz", 2)):
        rows = [f"1 {1000 + 10 * n} G A {weight + n}" for n in range(4)]
        scoring_file(tmp_path / "s" / name, PLACE, rows, pgs_id=given, genome_build="GRCh38")
    preprocess("pgs", tmp_path / "s", "--genotypes", bed, "--out", tmp_path / "d", "--test-fraction", 0)
    assert opened(tmp_path / "d", "pgs").features.name.tolist() == ["mine", "yours"]


def monomorphic(tmp_path: Path) -> tuple[Path, np.ndarray, list[tuple[str, str, float]]]:
    """Write 40 SNPs of which 30 have A1 = 0, as plink 1.9 writes them: nobody has a copy of A1."""
    calls = random_calls(50, 40)
    calls[:, 10:] = np.where(calls[:, 10:] < 0, -127, 0)
    a1 = [*["G"] * 10, *["0"] * 30]
    bed = write_bed(tmp_path / "g/a.bed", calls, people(50), allele_1=a1, allele_2=["A"] * 40)
    rng = np.random.default_rng(1)
    rows = []
    for number in range(40):
        # As given, swapped, and both on the other strand.
        pair = (("G", "A"), ("A", "G"), ("C", "T"), ("T", "C"))[number % 4]
        rows.append((*pair, round(float(rng.normal()), 3)))
    return bed, calls, rows


def test_a1_0_is_matched_by_the_allele_that_is_there(tmp_path):
    bed, calls, rows = monomorphic(tmp_path)
    text = [f"1 {1000 + 10 * n} {effect} {other} {weight}" for n, (effect, other, weight) in enumerate(rows)]
    scoring_file(tmp_path / "s/a.txt", PLACE, text, genome_build="GRCh38")
    preprocess("pgs", tmp_path / "s", "--genotypes", bed, "--out", tmp_path / "d", "--test-fraction", 0)
    entry = json.loads((tmp_path / "d/reports/pgs.json").read_text())["scores"][0]
    assert (entry["status"], entry["matched"], entry["matched_flipped"]) == ("used", 20, 20)
    expected = np.zeros(50)
    for column, (effect, _, weight) in zip(calls.T.astype(float), rows, strict=True):
        copies = np.where(column < 0, np.nan, column if effect in "GC" else 2 - column)
        expected += weight * np.where(np.isnan(copies), np.nanmean(copies), copies)
    modality = opened(tmp_path / "d", "pgs")
    order = [people(50).index(name) for name in modality.participants]
    values = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(unpacked(modality)[:, 0], values[order], atol=1e-5)


@needs_plink2
def test_a1_0_gives_the_scores_of_plink2(tmp_path):
    bed, _, rows = monomorphic(tmp_path)
    text = [f"1 {1000 + 10 * n} {effect} {other} {weight}" for n, (effect, other, weight) in enumerate(rows)]
    scoring_file(tmp_path / "s/a.txt", PLACE, text, genome_build="GRCh38")
    for engine in ("own", "plink2"):
        out = ("--out", tmp_path / engine, "--test-fraction", 0, "--engine", engine)
        preprocess("pgs", tmp_path / "s", "--genotypes", bed, *out)
    own, theirs = (unpacked(opened(tmp_path / engine, "pgs")) for engine in ("own", "plink2"))
    np.testing.assert_allclose(own, theirs, atol=1e-4)


def test_a1_0_is_no_evidence_of_another_build(tmp_path):
    """More than half of the SNPs are monomorphic; other alleles at known SNPs still are evidence."""
    unknown = [("A", "0")] * 30
    variants = pd.DataFrame([("A", "G")] * 12 + unknown, columns=["ref", "alt"])
    variants = variants.assign(chromosome=1, id=".", position=range(10, 52))
    rows = [f"1 {10 + n} {'G A' if n < 12 else 'CT C'} 1" for n in range(42)]  # an indel fits no lone A
    score = scoring.read_score(scoring_file(tmp_path / "s.txt", PLACE, rows, genome_build="GRCh38"), "GRCh38")
    matches = VariantIndex(variants).match(score)
    assert (matches.counts["matched"], matches.counts["alleles_differ"], matches.wrong_build) == (12, 30, "")
    rows = [f"1 {10 + n} {'C A' if n < 12 else 'G A'} 1" for n in range(42)]
    score = scoring.read_score(scoring_file(tmp_path / "t.txt", PLACE, rows, genome_build="GRCh38"), "GRCh38")
    assert "12 of 12 variants" in VariantIndex(variants).match(score).wrong_build


def test_the_lone_allele_of_a_variant(tmp_path):
    columns = ["ref", "alt"]
    variants = pd.DataFrame([("A", "0"), ("A", "."), ("0", "A"), ("C", "0"), ("A", "0")], columns=columns)
    variants = variants.assign(chromosome=1, id=".", position=[10, 20, 30, 40, 50])
    place = "chr_name chr_position effect_allele other_allele effect_weight"
    rows = ["1 10 G A 1", "1 20 A G 1", "1 30 A G 1", "1 40 C G 1", "1 50 T  1"]
    score = scoring.read_score(scoring_file(tmp_path / "s.txt", place, rows, genome_build="GRCh38"), "GRCh38")
    matches = VariantIndex(variants).match(score)
    # 40: C/G is palindromic. 50: T may be the other strand of A, or the allele that nobody has.
    assert [FATES[fate] for fate in matches.fate] == ["matched", "matched", "matched", "ambiguous", "alleles_differ"]
    assert matches.effect_is_alt[:3].tolist() == [True, False, True]
