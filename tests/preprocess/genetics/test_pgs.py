"""Polygenic scores against slow loops, plink2, and every scoring file of the shared folder."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pgenlib
import pytest

from preprocess.__main__ import main
from preprocess.genetics import standardise
from preprocess.genetics.genotypes import chromosome_code, open_genotypes
from preprocess.genetics.pgs import plink2
from preprocess.genetics.pgs import scoring_file as scoring
from preprocess.genetics.pgs.match import FATES, VariantIndex
from preprocess.genetics.pgs.score_pass import ScorePass, Weights
from tests.helpers.genetics_cases import (
    DATA,
    RULE,
    all_bytes,
    cohort_and_scores,
    complaint,
    needs_data,
    needs_plink2,
    opened,
    people,
    preprocess,
    random_calls,
    scoring_file,
    write_bed,
)

TINY_VCF = DATA / "genetics/geno/tiny1000G.vcf.gz"
PGS001229 = DATA / "genetics/pgs/PGS001229_hmPOS_GRCh38.txt.gz"
PLACE = "chr_name chr_position effect_allele other_allele effect_weight"


def score_by_rows(path: Path, rows: list[str], columns: str = PLACE, **header: str) -> scoring.Score:
    return scoring.read_score(scoring_file(path, columns, rows, **{"genome_build": "GRCh38", **header}), "GRCh38")


def write_pgen(path: Path, dosages: np.ndarray, ids: list[str], variants: pd.DataFrame) -> Path:
    """Write dosages (participants x variants, NaN missing) as a .pgen with its companions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = pgenlib.PgenWriter(
        str(path).encode(), len(ids), variant_ct=dosages.shape[1], nonref_flags=False, dosage_present=True
    )
    for column in dosages.T:
        writer.append_dosages(np.where(np.isnan(column), -9, column).astype(np.float32))
    writer.close()
    variants.to_csv(path.with_suffix(".pvar"), sep="\t", index=False)
    path.with_suffix(".psam").write_text("\n".join(["#IID\tSEX", *(f"{one}\tNA" for one in ids)]) + "\n")
    return path


def raw_scores(dataset: Path, name: str) -> tuple[np.ndarray, dict]:
    """Undo the z-score of one score; also return its report entry."""
    modality = opened(dataset, "pgs")
    entry = next(
        one
        for one in json.loads((dataset / "reports/pgs.json").read_text())["scores"]
        if one["score"] == name and one["status"] == "used"
    )
    column = modality.features.name.tolist().index(name)
    return modality.rows[:, column].astype(np.float64) * entry["scale"] + entry["mean"], entry


def score_slowly(
    calls: np.ndarray, a1: list[str], wanted: dict[int, tuple[str, float]], train: np.ndarray
) -> np.ndarray:
    totals = []
    for row in calls.tolist():
        total = 0.0
        for variant, (allele, weight) in wanted.items():
            known = [c for c, is_train in zip(calls[:, variant].tolist(), train, strict=True) if is_train and c >= 0]
            copies = row[variant] if row[variant] >= 0 else sum(known) / len(known)
            total += weight * (copies if allele == a1[variant] else 2 - copies)
        totals.append(total)
    return np.array(totals)


@pytest.mark.parametrize("ambiguous", ["keep", "drop"])
def test_pgs_equals_a_slow_loop(tmp_path, ambiguous):
    bed, folder, calls, by_hand = cohort_and_scores(tmp_path)
    overlap = ("--min-overlap", 0)
    preprocess("pgs", folder, "--genotypes", bed, "--out", tmp_path / "d", "--ambiguous", ambiguous, *overlap)
    modality = opened(tmp_path / "d", "pgs")
    report = json.loads((tmp_path / "d/reports/pgs.json").read_text())
    # Files harmonised to the target come first.
    names, numbers = ["PGS3", "PGS1", "PGS2", "PGS4", "PGS5", "f"], [2, 0, 1, 3, 4, 5]
    if ambiguous == "drop":
        # Variants 2 (A/T) and 7 (C/G) are ambiguous; PGS4 has no other.
        by_hand = [{v: row for v, row in one.items() if v not in (2, 7)} for one in by_hand]
        names.remove("PGS4")
        numbers.remove(3)
    assert modality.features.name.tolist() == names
    assert [size for _, size in modality.features.groups()] == ([2, 2, 1, 1] if ambiguous == "keep" else [2, 1, 1, 1])
    train = np.array([RULE.of(one) == "train" for one in people(40)])
    for column, number in enumerate(numbers):
        expected = score_slowly(calls, list("GTAACGTC"), by_hand[number], train)
        mean, scale = expected[train].mean(), expected[train].std()
        np.testing.assert_allclose(modality.rows[:, column], (expected - mean) / scale, atol=2e-6)
        np.testing.assert_allclose(
            [modality.features.mean[column], modality.features.scale[column]], [mean, scale], 1e-5
        )
    of = {entry["score"]: entry for entry in report["scores"]}
    dropped = 0 if ambiguous == "keep" else 2
    assert (of["PGS1"]["matched"], of["PGS1"]["absent"], of["PGS1"]["alleles_differ"]) == (4 - dropped, 2, 1)
    assert of["PGS1"]["ambiguous"] == dropped
    assert (of["PGS2"]["matched"], of["PGS2"]["matched_flipped"]) == (2 - dropped // 2, 2)
    assert (of["PGS2"]["duplicate"], of["PGS2"]["malformed"]) == (1, 2)
    assert (of["PGS3"]["by_position"], of["PGS3"]["by_rsid"]) == (2, 1)
    rows = pd.read_parquet(tmp_path / "d/reports/pgs_variants.parquet")
    mine = rows[rows["score"] == "PGS2"].set_index("row")
    assert mine["fate"].to_dict() == {
        1: "matched",
        2: "matched_flipped",
        3: "matched" if ambiguous == "keep" else "ambiguous",
        4: "matched_flipped",
        5: "duplicate",
        6: "malformed",
        7: "malformed",
    }
    assert mine.loc[2, "variant"] == "rs2"
    assert mine.loc[2, "weight"] == 3
    assert mine.loc[2, ["effect_allele", "other_allele"]].tolist() == ["G", "A"]


def variants_at(*alleles: tuple[str, str], position: list[int] | None = None) -> pd.DataFrame:
    """Variants of chromosome 1 with given (REF, ALT)."""
    count = len(alleles)
    return pd.DataFrame(
        {
            "chromosome": 1,
            "position": position or [10 * (1 + number) for number in range(count)],
            "id": [f"rs{number + 1}" for number in range(count)],
            "ref": [ref for ref, _ in alleles],
            "alt": [alt for _, alt in alleles],
        }
    )


def fates(tmp_path: Path, variants: pd.DataFrame, rows: list[str], columns: str = PLACE, **options: bool) -> list[str]:
    matches = VariantIndex(variants, **options).match(score_by_rows(tmp_path / "s.txt", rows, columns))
    return [FATES[fate] for fate in matches.fate]


def test_strand_and_ambiguity(tmp_path):
    variants = variants_at(("T", "A"), ("C", "A"), ("G", "C"), ("A", "G"))
    rows = ["1 10 T A 1", "1 20 T G 1", "1 30 G C 1", "1 40 C T 1"]
    assert fates(tmp_path, variants, rows) == ["ambiguous", "matched_flipped", "ambiguous", "matched_flipped"]
    kept = VariantIndex(variants, keep_ambiguous=True).match(score_by_rows(tmp_path / "s.txt", rows))
    assert [FATES[fate] for fate in kept.fate] == ["matched", "matched_flipped", "matched", "matched_flipped"]
    assert kept.effect_is_alt.tolist() == [False, True, False, True]
    # An ambiguous variant must not be flipped: "A" on a T/A site is A, whatever the strand.
    one = VariantIndex(variants, keep_ambiguous=True).match(score_by_rows(tmp_path / "t.txt", ["1 10 A T 1"]))
    assert one.effect_is_alt.tolist() == [True]


def test_a_missing_other_allele_agrees_unless_several_variants_fit(tmp_path):
    variants = variants_at(("A", "G"), ("A", "C"), ("A", "G"), position=[10, 10, 20])
    columns = PLACE.replace(" other_allele", "")
    # At 10 stand A/G and A/C: G and C name one of them, A (REF) both.
    assert fates(tmp_path, variants, ["1 10 G 1"], columns) == ["matched"]
    assert fates(tmp_path, variants, ["1 10 C 1"], columns) == ["matched"]
    assert fates(tmp_path, variants, ["1 10 A 1"], columns) == ["several_fit"]
    assert fates(tmp_path, variants, ["1 20 A 1"], columns) == ["matched"]
    assert fates(tmp_path, variants, ["1 10 A C 1"]) == ["matched"]


def test_the_examples_of_the_matching_rules(tmp_path):
    """The table of :mod:`preprocess.genetics.pgs.match`: the genotypes have 1:10 A/G."""
    found = fates(tmp_path, variants_at(("A", "G")), ["1 10 G A 1", "1 10 C T 1", "1 10 G C 1", "1 11 G A 1"])
    assert found == ["matched", "duplicate", "alleles_differ", "absent"]
    assert fates(tmp_path, variants_at(("A", "G")), ["1 10 A G 1"]) == ["matched"]
    assert fates(tmp_path, variants_at(("A", "G")), ["1 10 C T 1"]) == ["matched_flipped"]


def test_several_other_alleles_are_read_as_none(tmp_path):
    """As pgscatalog.core 1.1.1 reads them: anything with ``/`` is no other allele; no other character separates."""
    rows = ["1 10 G A/C 1", "1 20 A G/T/ 1", "1 30 G A/bad 1", "1 40 G/C A 1", "1 50 G A,C 1"]
    score = score_by_rows(tmp_path / "s.txt", rows)
    assert (score.counts["rows"], score.counts["malformed"], score.malformed) == (5, 2, [4, 5])
    assert fates(tmp_path, variants_at(("A", "G")), ["1 10 G A/C 1"]) == ["matched"]


def test_multi_allelic_lines_and_repeated_rows_are_excluded(tmp_path):
    variants = variants_at(("A", "G,C"), ("A", "G"))
    assert fates(tmp_path, variants, ["1 10 G A 1", "1 20 G A 1", "1 20 A G 1"]) == [
        "multi_allelic",
        "matched",
        "duplicate",
    ]


def test_chromosome_codes(tmp_path):
    labels = {"1": 1, "chr22": 22, "01": 1, "X": 23, "chrX": 23, "23": 23, "PAR1": 23, "25": 23}
    labels |= {"Y": 0, "24": 0, "MT": 0, "26": 0, "chrM": 0, "HLA": 0, "": 0}
    assert {label: chromosome_code(label) for label in labels} == labels
    variants = variants_at(("A", "G"), ("A", "G")).assign(chromosome=[23, 0])
    assert fates(tmp_path, variants, ["X 10 G A 1", "Y 20 G A 1"]) == ["matched", "absent"]
    assert fates(tmp_path, variants, ["X 10 G A 1"], autosomes_only=True) == ["absent"]


def test_rsids_find_rows_without_a_place(tmp_path):
    variants = variants_at(("A", "G"), ("A", "G"))
    columns = "rsID " + PLACE
    rows = ["rs2   G A 1", "rs1 1 20 G A 1", "rs7   G A 1", "name   G A 1", "rs2,rs3   G A 1"]
    matches = VariantIndex(variants).match(score_by_rows(tmp_path / "s.txt", rows, columns))
    assert [FATES[fate] for fate in matches.fate] == ["matched", "duplicate", "absent", "no_place", "no_place"]
    assert matches.variant.tolist() == [1, 1, -1, -1, -1], "a place outweighs an rsID"


def test_names_with_too_many_digits_are_no_rsids(tmp_path):
    variants = variants_at(("A", "G"), ("A", "C")).assign(id=["rs12345678901234567890", "rs7"])
    assert fates(tmp_path, variants, ["rs7 C A 1"], "rsID effect_allele other_allele effect_weight") == ["matched"]


def test_opposite_effect_alleles_in_two_scores_share_a_product():
    """A weight on REF is -w per ALT copy and a constant +2w.

    See docs/genetics-pitfalls.md#effect-allele-is-the-reference.
    """
    rng = np.random.default_rng(0)
    calls = rng.integers(-1, 3, (6, 50)).astype(np.int8)

    class Fake:
        samples = np.array(people(50))
        variants = pd.DataFrame({"id": range(6)})

        def hard_calls(self, variant_rows, sample_rows=None):
            return calls[variant_rows] if sample_rows is None else calls[np.ix_(variant_rows, sample_rows)]

        def dosages(self, variant_rows, sample_rows=None):
            values = self.hard_calls(variant_rows, sample_rows)
            return np.where(values < 0, np.nan, values).astype(np.float32)

    weights = Weights()
    for is_alt in (True, False):
        weights.add(np.array([4, 1, 3]), np.array([1.0, 2.0, -2.5]), np.full(3, is_alt))
    train = np.arange(50) < 30
    expected = np.zeros((50, 2))
    for variant, weight in ((4, 1.0), (1, 2.0), (3, -2.5)):
        known = calls[variant, :30][calls[variant, :30] >= 0]
        copies = np.where(calls[variant] < 0, known.mean(), calls[variant])
        expected += weight * np.stack([copies, 2 - copies], axis=1)
    for hard_calls in (True, False):
        for memory in (2 << 30, 1 << 20):
            one = ScorePass(Fake(), weights, train, hard_calls, memory)
            got = np.concatenate([sums for _, sums in one.blocks()])
            np.testing.assert_allclose(got, expected, atol=1e-12)
            assert one.missing == int((calls[[4, 1, 3]] < 0).sum())


def test_memory_bounds_the_participants_of_a_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("preprocess.genetics.pgs.score_pass.COLUMNS_PER_PRODUCT", 16)
    ids, calls = people(100), random_calls(100, 40)
    genotypes = open_genotypes(write_bed(tmp_path / "all.bed", calls, ids))
    weights = Weights()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        weights.add(rng.permutation(40)[:30], rng.standard_normal(30), rng.random(30) < 0.5)
    train = np.array([RULE.of(one) == "train" for one in ids])
    whole = ScorePass(genotypes, weights, train)
    tight = ScorePass(genotypes, weights, train, memory=3 * 8 * 5 * 30)
    assert tight.participants_per_block <= 30 < whole.participants_per_block
    blocks = list(tight.blocks())
    assert len(blocks) == 4
    sums = np.concatenate([block for _, block in whole.blocks()])
    np.testing.assert_allclose(np.concatenate([block for _, block in blocks]), sums, atol=1e-12)
    assert tight.missing == whole.missing > 0


def test_dosages_are_scored_where_there_are_any(tmp_path):
    """Pgenlib writes -9 for a missing dosage.

    See docs/genetics-pitfalls.md#dosages-before-hard-calls and docs/genetics-pitfalls.md#missing-codes.
    """
    rng = np.random.default_rng(1)
    dosages = np.round(rng.uniform(0, 2, (30, 5)) * 64) / 64
    dosages[rng.random(dosages.shape) < 0.2] = np.nan
    variants = pd.DataFrame(
        {"#CHROM": 1, "POS": [10, 20, 30, 40, 50], "ID": ".", "REF": list("ACGTA"), "ALT": list("GTACC")}
    )
    pgen = write_pgen(tmp_path / "g.pgen", dosages, people(30), variants)
    rows = ["1 10 G A 0.5", "1 20 C T 2", "1 40 C T -1", "1 50 A C 0.25"]
    file = scoring_file(tmp_path / "s.txt", PLACE, rows, pgs_id="S", genome_build="GRCh38")
    preprocess("pgs", file, "--genotypes", pgen, "--out", tmp_path / "d", "--test-fraction", 0)
    np.testing.assert_array_equal(open_genotypes(pgen).dosages(np.arange(5)), dosages.T.astype(np.float32))
    filled = np.where(np.isnan(dosages), np.nanmean(dosages, axis=0), dosages)
    expected = 0.5 * filled[:, 0] + 2 * (2 - filled[:, 1]) - filled[:, 3] + 0.25 * (2 - filled[:, 4])
    np.testing.assert_allclose(raw_scores(tmp_path / "d", "S")[0], expected, atol=1e-6)
    preprocess("pgs", file, "--genotypes", pgen, "--out", tmp_path / "e", "--test-fraction", 0, "--hard-calls")
    assert np.abs(raw_scores(tmp_path / "e", "S")[0] - expected).max() > 0.1, "hard calls are other numbers"
    report = json.loads((tmp_path / "e/reports/pgs.json").read_text())
    assert report["variants"]["missing_values"] > np.isnan(dosages[:, [0, 1, 3, 4]]).sum()


def test_scores_in_blocks_have_the_same_statistics():
    values = np.random.default_rng(0).standard_normal((50, 3)) * [1, 5, 0] + [0, 100, 7]
    values[3, 0] = np.nan
    for one, other in zip(
        standardise.fit(values), standardise.fit_blocks(lambda: [values[:20], values[20:]]), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_excluded_scores_are_listed_with_the_reason(tmp_path, capsys):
    bed, folder, _, _ = cohort_and_scores(tmp_path)
    bad = tmp_path / "bad"
    place = "chr_name chr_position effect_allele other_allele effect_weight"
    one = "1 1000 G A 1"
    scoring_file(bad / "build.txt", place, [one], genome_build="GRCh37")
    scoring_file(bad / "unnamed.txt", place, [one])
    scoring_file(bad / "columns.txt", "chr_name chr_position effect_allele", ["1 1000 G"], genome_build="GRCh38")
    scoring_file(bad / "dosage.txt", place.replace("effect_weight", "dosage_0_weight"), [one], genome_build="GRCh38")
    scoring_file(bad / "haplo.txt", place + " is_haplotype", [one + " TRUE"], genome_build="GRCh38")
    scoring_file(bad / "absent.txt", place, ["2 1000 G A 1"], genome_build="GRCh38")
    scoring_file(bad / "empty.txt", place, [], genome_build="GRCh38")
    whole = gzip.compress((folder / "a.txt").read_bytes())
    (bad / "cut.txt.gz").write_bytes(whole[: len(whole) // 2])
    message = complaint(capsys, "pgs", bad, "--genotypes", bed, "--out", tmp_path / "d")
    assert str(bad) in message
    assert "--build GRCh38" in message
    shutil.copy(folder / "a.txt", bad)
    preprocess("pgs", bad, "--genotypes", bed, "--out", tmp_path / "d", "--min-overlap", 0)
    reasons = {
        entry["file"]: entry["reason"] for entry in json.loads((tmp_path / "d/reports/pgs.json").read_text())["scores"]
    }
    assert reasons.pop("a.txt") == ""
    words = {"build": "GRCh37", "unnamed": "unnamed build", "columns": "effect_weight", "dosage": "dosage_0/1/2"}
    words |= {"haplo": "haplotype", "absent": "none of 1 rows", "empty": "no rows"}
    for name, word in words.items():
        assert word in reasons.pop(f"{name}.txt")
    assert "damaged" in reasons.pop("cut.txt.gz")
    assert not reasons
    assert opened(tmp_path / "d", "pgs").features.name.tolist() == ["PGS1"]
    preprocess("pgs", bad, "--genotypes", bed, "--out", tmp_path / "e", "--assume-build", "hg38", "--min-overlap", 0)
    assert "unnamed" in opened(tmp_path / "e", "pgs").features.name.tolist()


def test_genotypes_in_another_build_are_noticed(tmp_path, capsys):
    bed = write_bed(tmp_path / "all.bed", random_calls(20, 30), people(20))
    # Every position is another variant's place: alleles agree there, rsIDs do not.
    rows = [f"rs{number + 1} 1 {1000 + 10 * ((number + 3) % 30)} G A 1" for number in range(30)]
    columns = "rsID chr_name chr_position effect_allele other_allele effect_weight"
    file = scoring_file(tmp_path / "s.txt", columns, rows, genome_build="GRCh38")
    assert "30 of 30 rsIDs have another position" in complaint(
        capsys, "pgs", file, "--genotypes", bed, "--out", tmp_path / "d"
    )


def to_pgen(folder: Path) -> Path:
    """Make a .pgen of the 3,202 real samples; no sexes, so that X counts like an autosome in plink2 too."""
    run_plink2("--vcf", TINY_VCF, "--make-pgen", "--out", folder / "tiny")
    return folder / "tiny.pgen"


def run_plink2(*arguments: object) -> None:
    subprocess.run(["plink2", *map(str, arguments), "--silent"], check=True, capture_output=True)


def plink2_sums(folder: Path, lines: list[str], scores: int) -> np.ndarray:
    (folder / "weights").write_text("\n".join(lines) + "\n")
    columns = ["--score-col-nums", f"3-{2 + scores}"] if scores > 1 else []
    run_plink2(
        *("--pfile", folder / "tiny", "--out", folder / "p"),
        *("--score", folder / "weights", "header-read", "cols=scoresums", *columns),
    )
    return pd.read_csv(folder / "p.sscore", sep="\t").iloc[:, -scores:].to_numpy()


@needs_data
@needs_plink2
def test_pgs001229_agrees_with_plink2_on_real_genotypes(tmp_path):
    pgen, out = to_pgen(tmp_path), tmp_path / "d"
    common = (
        "pgs",
        PGS001229,
        "--genotypes",
        pgen,
        "--assume-build",
        "GRCh38",
        "--test-fraction",
        0,
        "--min-overlap",
        0,
    )
    preprocess(*common, "--out", out)
    mine, entry = raw_scores(out, PGS001229.name.removesuffix(".txt.gz"))
    assert entry["matched"] + entry["matched_flipped"] == 920
    assert entry["matched_flipped"] == 3
    assert entry["ambiguous"] == 66
    # plink2 knows no strand: give it the variants of the file by (position, alleles), flipped where that is needed.
    known = {}
    for line in (tmp_path / "tiny.pvar").read_text().splitlines():
        if not line.startswith("#"):
            chromosome, position, name, ref, alt = line.split()[:5]
            if ref.translate(str.maketrans("ACGT", "TGCA")) != alt:
                known[chromosome, position, frozenset((ref, alt))] = name
    lines = ["ID A W"]
    with gzip.open(PGS001229, "rt") as file:
        for line in itertools.islice(file, 1, None):
            chromosome, position, effect, other, weight = line.split("\t")[:5]
            for letters in ("ACGT", "TGCA"):
                table = str.maketrans("ACGT", letters)
                name = known.get((chromosome, position, frozenset((effect.translate(table), other.translate(table)))))
                if name is not None:
                    lines.append(f"{name} {effect.translate(table)} {weight}")
                    break
    assert len(lines) - 1 == 920
    np.testing.assert_allclose(mine, plink2_sums(tmp_path, lines, 1)[:, 0], atol=5e-6, rtol=0)
    # The paper's own tool as the engine, from our matches.
    preprocess(*common, "--out", tmp_path / "e", "--engine", "plink2")
    np.testing.assert_allclose(raw_scores(tmp_path / "e", entry["score"])[0], mine, atol=5e-6, rtol=0)
    preprocess(*common, "--out", tmp_path / "f", "--ambiguous", "keep")
    assert raw_scores(tmp_path / "f", entry["score"])[1]["matched"] == 983


@needs_data
@needs_plink2
def test_twenty_scores_in_one_pass_agree_with_plink2(tmp_path):
    pgen = to_pgen(tmp_path)
    table = pd.read_csv(tmp_path / "tiny.pvar", sep="\t", dtype=str)
    complement = table["REF"].map(lambda allele: allele.translate(str.maketrans("ACGT", "TGCA")))
    table = table[(complement != table["ALT"]) & ~table.duplicated("ID", keep=False)]
    rng = np.random.default_rng(2)
    folder = tmp_path / "scores"
    # Effect alleles differ from score to score, so plink2 gets a file of each kind, and its sums add up.
    weights, is_alt = np.zeros((len(table), 20)), rng.random((len(table), 20)) < 0.5
    for score in range(20):
        rows = np.sort(rng.choice(len(table), 300, replace=False))
        # Sums stay below 1, where plink2's six printed digits are fine enough to compare with.
        weights[rows, score] = rng.normal(0, 0.01, 300).round(6)
        lines = [
            f"{one['#CHROM']} {one.POS} {one.ALT if alt else one.REF} {one.REF if alt else one.ALT} {weight!r}"
            for (_, one), alt, weight in zip(
                table.iloc[rows].iterrows(), is_alt[rows, score], weights[rows, score].tolist(), strict=True
            )
        ]
        scoring_file(folder / f"s{score:02}.txt", PLACE, lines, pgs_id=f"S{score:02}", genome_build="GRCh38")
    preprocess("pgs", folder, "--genotypes", pgen, "--out", tmp_path / "d", "--test-fraction", 0)
    theirs = 0
    for allele, mask in (("ALT", is_alt), ("REF", ~is_alt)):
        lines = ["ID A " + " ".join(f"S{score}" for score in range(20))]
        values = np.where(mask, weights, 0)
        for name, letter, row in zip(table["ID"], table[allele], values.tolist(), strict=True):
            lines.append(f"{name} {letter} " + " ".join(map(repr, row)))
        theirs = theirs + plink2_sums(tmp_path, lines, 20)
    mine = np.stack([raw_scores(tmp_path / "d", f"S{score:02}")[0] for score in range(20)], axis=1)
    np.testing.assert_allclose(mine, theirs, atol=5e-6, rtol=0)
    preprocess(
        *("pgs", folder, "--genotypes", pgen, "--out", tmp_path / "e", "--test-fraction", 0, "--engine", "plink2")
    )
    engine = np.stack([raw_scores(tmp_path / "e", f"S{score:02}")[0] for score in range(20)], axis=1)
    np.testing.assert_allclose(engine, theirs, atol=5e-6, rtol=0)


@needs_plink2
def test_the_plink2_engine_takes_training_frequencies_and_joins_by_id(tmp_path):
    ids = ["-1", *people(40), "-2"]
    calls = random_calls(42, 8)
    bed = write_bed(tmp_path / "all.bed", calls, ids)
    rows = [f"1 {1000 + 10 * number} {'GA'[number % 2]} {'AG'[number % 2]} 0.{number + 1}" for number in range(8)]
    file = scoring_file(tmp_path / "s.txt", PLACE, rows, pgs_id="S", genome_build="GRCh38")
    keep = tmp_path / "keep"
    keep.write_text("\n".join(people(40)[3:]) + "\n")
    for engine in ("own", "plink2"):
        preprocess("pgs", file, "--genotypes", bed, "--out", tmp_path / engine, "--engine", engine, "--keep", keep)
    own, theirs = (raw_scores(tmp_path / engine, "S")[0] for engine in ("own", "plink2"))
    assert opened(tmp_path / "own", "pgs").participants.tolist() == people(40)[3:]
    np.testing.assert_allclose(own, theirs, atol=5e-6, rtol=1e-6)


def test_the_plink2_engine_says_when_plink2_is_absent(tmp_path, capsys, monkeypatch):
    bed, folder, _, _ = cohort_and_scores(tmp_path)
    monkeypatch.setattr(plink2.shutil, "which", lambda _: None)
    message = complaint(
        capsys, "pgs", folder, "--genotypes", bed, "--out", tmp_path / "d", "--engine", "plink2", "--build", "GRCh38"
    )
    assert "apt-get install plink2" in message


# What becomes of every file of the shared folder with genotypes in GRCh38: rows read, or a word of the reason.
FILES = {
    "OPGS017309_hmPOS_GRCh38.txt.gz": 697,
    "OPGS019828_hmPOS_GRCh38.txt.gz": 1,
    "PGS000001.txt.gz": 77,
    "PGS000001_hmPOS_GRCh37.txt.gz": 77,
    "PGS000001_hmPOS_GRCh38.txt.gz": 77,
    "PGS000002.txt.gz": 77,
    "PGS000002_hmPOS_GRCh37.txt.gz": 77,
    "PGS000002_hmPOS_GRCh38.txt.gz": 77,
    "PGS000802_hmPOS_GRCh37.txt": "dominant",
    "PGS001229_22.txt": 835,
    "PGS001229_hmPOS_GRCh38.txt.gz": "unnamed build",
    "PGS004255_hmPOS_GRCh38.txt.gz": "dosage_0/1/2",
    "bad_harmonised.txt": "no positions and no rsIDs",
    "complex_variants_PGS000021.txt": "haplotype",
    "complex_variants_PGS004239.txt": "haplotype",
    "custom.txt": "GRCh37",
    "custom_no_oa.txt": "GRCh37",
    "customgrch37.txt": "GRCh37",
    "invalid_scorefile.txt": "no positions and no rsIDs",
    "multiscore.txt": "effect_weight",
    "scorefile.txt": "GRCh37",
    "scorefile_dominant_and_recessive.txt": "dominant",
}


@needs_data
@pytest.mark.parametrize("name", FILES)
def test_real_scoring_files_are_parsed_or_refused_with_a_reason(name):
    path, wanted = DATA / "genetics/pgs" / name, FILES[name]
    if isinstance(wanted, str):
        with pytest.raises(scoring.UnusableScoreError, match=wanted):
            scoring.read_score(path, "GRCh38")
        return
    score = scoring.read_score(path, "GRCh38")
    assert score.counts["rows"] == wanted
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
        lines = [line.rstrip("\n").split("\t") for line in file if not line.startswith("#")]
    columns = [column.lower() for column in lines[0]]
    rows = [dict(itertools.zip_longest(columns, line, fillvalue="")) for line in lines[1:]]
    use = "hm_" if "GRCh38" in name else None
    for number, row in enumerate(score.line.tolist()):
        mine = rows[row - 1]
        assert score.weight[number] == float(mine["effect_weight"])
        assert score.alleles[score.effect[number]] == mine["effect_allele"]
        assert score.position[number] == (int(mine["hm_pos"] or 0) if use else 0)
    assert score.counts["malformed"] == len(rows) - len(score.line)


@needs_data
def test_every_real_file_is_known_here():
    """The 23rd file of the folder is a list of variants, which no command takes for a score."""
    found = {path.name for path in (DATA / "genetics/pgs").iterdir()}
    assert found == {*FILES, "1000G.pvar"}
    with pytest.raises(scoring.UnusableScoreError, match="effect_allele"):
        scoring.read_score(DATA / "genetics/pgs/1000G.pvar", "GRCh38")


def test_damaged_rows_are_counted_by_number(tmp_path):
    rows = [
        "1 10 G A 1",
        "1 20 G",  # too few
        "1 30 G A 1 more than named",
        "1 x G A 1",  # no position, no rsID
        "1 50 G A ?",
        "1 60 G N 1",
        "1 70  A 1",
        "",
        "1 80 G A inf",
        "1 90 G A 1e-3",
    ]
    score = score_by_rows(tmp_path / "s.txt", rows)
    assert score.line.tolist() == [1, 4, 9]
    assert score.malformed == [2, 3, 5, 6, 7, 8]
    assert score.position.tolist() == [10, 0, 90]
    assert score.counts == {"rows": 9, "malformed": 6, "no_place": 1}


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    file = scoring_file(tmp_path / "s.txt", PLACE, ["1 10 G A 1"], genome_build="GRCh38")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert scoring.read_score(file, "GRCh38").weight.tolist() == [1]


def test_blank_harmonised_columns_and_stray_quotes(tmp_path):
    """A blank hm_pos falls back to the rsID when the file's own build is another.

    See docs/genetics-pitfalls.md#scoring-files.
    """
    columns = "rsID chr_name chr_position effect_allele other_allele effect_weight locus_name hm_chr hm_pos"
    rows = ['rs1 1 5 G A 1 "x 1 10', "rs2 1 6 G A 1 y  ", 'rs3 1 7 G A 1 z" 1 30']
    score = score_by_rows(tmp_path / "s.txt", rows, columns, genome_build="GRCh37", HmPOS_build="GRCh38")
    assert score.position.tolist() == [10, 0, 30]
    assert score.rsid.tolist() == [1, 2, 3]
    native = score_by_rows(tmp_path / "t.txt", rows, columns, HmPOS_build="GRCh37")
    assert native.position.tolist() == [5, 6, 7], "hm_pos of another build is never used"


def test_a_blank_harmonised_place_leaves_the_files_own(tmp_path):
    """Both builds are the target's; the second row's harmonised place is blank.

    See docs/genetics-pitfalls.md#scoring-files.
    """
    columns = PLACE + " hm_chr hm_pos"
    file = scoring_file(
        tmp_path / "s.txt", columns, ["1 10 G A 1 1 15", "1 20 G A 1  "], genome_build="GRCh38", HmPOS_build="GRCh38"
    )
    assert scoring.read_score(file, "GRCh38").position.tolist() == [15, 20]


def test_positions_in_another_build_are_noticed_by_alleles(tmp_path, capsys):
    """One real header says hg19 and the file is GRCh38; without rsIDs only the alleles can tell.

    See docs/genetics-pitfalls.md#scoring-files.
    """
    bed = write_bed(tmp_path / "all.bed", random_calls(20, 30), people(20))
    rows = [
        f"1 {1000 + 10 * number} {'GA' if number < 12 else 'CA'} 1".replace("GA", "G A").replace("CA", "C A")
        for number in range(30)
    ]
    file = scoring_file(tmp_path / "s.txt", PLACE, rows, genome_build="GRCh38")
    message = complaint(capsys, "pgs", file, "--genotypes", bed, "--out", tmp_path / "d")
    assert "18 of 30 variants at its positions have other alleles" in message


def test_reruns_give_equal_bytes_and_refuse_to_overwrite(tmp_path, capsys):
    bed, folder, _, _ = cohort_and_scores(tmp_path)
    for name in ("one", "two"):
        preprocess("pgs", folder, "--genotypes", bed, "--out", tmp_path / name)
    one, two = all_bytes(tmp_path / "one"), all_bytes(tmp_path / "two")
    assert one == two
    assert not any(b"P001" in content for name, content in one.items() if name.startswith("reports"))
    message = complaint(capsys, "pgs", folder, "--genotypes", bed, "--out", tmp_path / "one")
    assert "already exists" in message


def test_a_crash_before_the_store_needs_no_hand_work(tmp_path, monkeypatch):
    bed, folder, _, _ = cohort_and_scores(tmp_path)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("preprocess.genetics.pgs.command.write_modality", crash)
        assert main(["pgs", str(folder), "--genotypes", str(bed), "--out", str(tmp_path / "d")]) == 130
    preprocess("pgs", folder, "--genotypes", bed, "--out", tmp_path / "d")
    preprocess("pgs", folder, "--genotypes", bed, "--out", tmp_path / "e")
    assert all_bytes(tmp_path / "d") == all_bytes(tmp_path / "e")


def test_mistakes_in_plink2_files_are_named(tmp_path, capsys):
    variants = pd.DataFrame({"#CHROM": 1, "POS": [10, 20], "ID": ".", "REF": "A", "ALT": "G"})
    file = scoring_file(tmp_path / "s.txt", PLACE, ["1 10 G A 1", "1 20 G A 1"], genome_build="GRCh38")

    def fresh(name: str) -> Path:
        return write_pgen(tmp_path / name / "g.pgen", random_calls(20, 2).clip(0).astype(float), people(20), variants)

    def complain(pgen: Path) -> str:
        return complaint(capsys, "pgs", file, "--genotypes", pgen, "--out", tmp_path / "d")

    for suffix in (".pvar", ".psam"):
        pgen = fresh(f"no{suffix}")
        pgen.with_suffix(suffix).unlink()
        assert f"g{suffix}: does not exist" in complain(pgen)
    pgen = fresh("pvar")
    pgen.with_suffix(".pvar").write_text("#CHROM\tPOS\tID\tREF\tALT\n1\t10\t.\tA\tG\n1\tten\t.\tA\tG\n")
    assert "g.pvar: line 3" in complain(pgen)
    bed = write_bed(tmp_path / "all.bed", random_calls(20, 2), people(20))
    for place in ("1000.5", "-1000", "9" * 25):
        bed.with_suffix(".bim").write_text(f"1\trs1\t0\t{place}\tG\tA\n1\trs2\t0\t1010\tG\tA\n")
        assert "all.bim: line 1: the position" in complain(bed)
    for text, words in (
        ("1\trs1\t0\t1000\tG\tA\n1\trs2\t0\t1010\tG\n", "line 2 has 5 columns"),
        ("1\trs1\t0\t1000\tG\tA\tx\n1\trs2\t0\t1010\tG\tA\n", "line 1 has 7 columns"),
        ("", "is empty"),
    ):
        bed.with_suffix(".bim").write_text(text)
        assert f"all.bim: {words}" in complain(bed)
    pgen = fresh("header")
    for suffix, text, words in (
        (".psam", "#FID SEX\n" + "F 1\n" * 20, "line 1 names no column IID"),
        (".psam", b"#IID\n\xff\n", "is not text"),
        (".pvar", "#CHROM\tPOS\tID\tREF\n1\t10\t.\tA\n", "line 1 names no column ALT"),
        (".pvar", "#CHROM\tPOS\tID\tALT\n1\t10\t.\tA\n", "line 1 names no column REF"),
        (".pvar", b"##\xff\n#CHROM\tPOS\tID\tREF\tALT\n", "is not text"),
        (".pvar", b"#CHROM\tPOS\tID\tREF\tALT\n1\t10\t\xff\tA\tG\n", "is not text"),
        (".pvar", "#CHROM\tPOS\tID\tREF\tALT\n", "names no variants"),
        (".pvar", "#CHROM\tPOS\tID\tREF\tALT\n1\t10\t.\tA\tG\n1\t20\t.\tA\n", "line 3 has 4 columns"),
    ):
        path = fresh("header").with_suffix(suffix)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert f"g{suffix}: {words}" in complain(pgen)
    pgen = fresh("samples")
    pgen.with_suffix(".psam").write_text("#IID\n" + "\n".join(people(19)) + "\n")
    assert "19 samples x 2 variants" in complain(pgen)
    assert "is no genotype file" in complain(tmp_path / "s.txt")
