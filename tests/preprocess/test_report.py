"""The HTML report: figures and counts of every kind of modality, nothing of a person, nothing from elsewhere."""

import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest

from mrmfast.data.genetics.store import FeatureTable, write_modality
from mrmfast.formats.sample_table import read_sample_table
from preprocess.__main__ import main
from preprocess.report.statistics import collect
from tests.helpers.common import write_dataset
from tests.helpers.genetics_cases import cohort_and_scores


def page(dataset, *arguments):
    assert main(["report", str(dataset), *arguments]) == 0
    return (dataset / "reports" / "genetics.html").read_text()


def write_ledger(dataset, name, header, lines):
    (dataset / "reports").mkdir(exist_ok=True)
    with gzip.open(dataset / "reports" / f"{name}_variants.tsv.gz", "wt") as file:
        file.write("\n".join("\t".join(map(str, line)) for line in (header, *lines)) + "\n")


def test_one_page_of_its_own_without_ids(tmp_path):
    dataset = write_dataset(tmp_path / "ds")
    text = page(dataset)
    for participant in set(read_sample_table(str(dataset)).participant.tolist()):
        assert participant not in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text.replace('xlink:href="#', 'href="#'))
    assert text.count("<svg") >= 9
    for name in ("snps", "pgs", "burden"):
        assert f'<h2 id="{name}">' in text
    assert page(dataset) == text


def test_statistics_equal_those_of_the_values(tmp_path):
    generator = np.random.default_rng(0)
    codes = generator.integers(-1, 3, (5000, 9))
    codes[:, 4] = -1
    ids = [f"p{i}" for i in range(5000)]
    table = FeatureTable.build([f"f{i}" for i in range(9)], ["g"] * 9)
    write_modality(tmp_path, "snps", "genotype", ids, table, [codes])
    scores = generator.standard_normal((5000, 9)).astype(np.float32)
    scores[generator.random((5000, 9)) < 0.1] = np.nan
    scores[0, 0] = 100
    write_modality(tmp_path, "pgs", "float", ids, table, [scores])
    bits = generator.integers(0, 2, (5000, 9))
    write_modality(tmp_path, "burden", "binary", ids, table, [bits])

    found = collect(tmp_path, "snps")
    assert np.array_equal(found.missing_per_feature, (codes < 0).sum(0))
    assert np.array_equal(found.missing_per_participant, (codes < 0).sum(1))
    expected = [np.nan if i == 4 else codes[:, i][codes[:, i] >= 0].mean() / 2 for i in range(9)]
    assert np.allclose(found.frequency, expected, equal_nan=True)
    found = collect(tmp_path, "pgs")
    assert np.array_equal(found.histogram.sum(1), (~np.isnan(scores)).sum(0))
    assert found.histogram[0, -1] == 1
    found = collect(tmp_path, "burden")
    assert np.array_equal(found.sum_per_participant, bits.sum(1))
    assert np.allclose(found.frequency, bits.mean(0))
    assert "1 SNPs are missing in every participant" in page(tmp_path)


def test_a_flipped_reference_is_pointed_out(tmp_path):
    generator = np.random.default_rng(1)
    codes = generator.binomial(2, 0.1, (400, 6))
    table = FeatureTable.build([f"rs{i}" for i in range(6)], ["chr1"] * 6)
    write_modality(tmp_path, "snps", "genotype", map(str, range(9000, 9400)), table, [codes])
    true = codes.mean(0) / 2
    columns = ("chromosome", "id", "swapped", "fate", "alt_frequency_train")
    right = [(1, f"rs{i}", 1, "kept", true[i]) for i in range(6)] + [(1, "rs9", 0, "duplicate_id", "")]
    write_ledger(tmp_path, "snps", columns, right)
    text = page(tmp_path)
    assert "frequency of the other allele" not in text
    assert "Excluded: 1 of 7 rows" in text
    assert re.search(r"kept SNPs with swapped alleles</td><td class=\"n\">6<", text)
    write_ledger(tmp_path, "snps", columns, [(1, f"rs{i}", 0, "kept", 1 - true[i]) for i in range(6)])
    assert "6 SNPs have the frequency of the other allele" in page(tmp_path)


def test_excluded_scores_are_listed_with_reasons(tmp_path):
    table = FeatureTable.build(["PGS1"], ["part1"])
    write_modality(tmp_path, "pgs", "float", ["a", "b"], table, [np.zeros((2, 1))])
    (tmp_path / "reports").mkdir()
    entries = [
        {"score": "PGS1", "file": "PGS1.txt", "status": "used", "reason": "", "rows": 7, "matched": 5},
        {"score": "PGS2", "file": "PGS2.txt", "status": "excluded", "reason": "positions in <another> build"},
    ]
    (tmp_path / "reports" / "pgs.json").write_text(json.dumps({"scores": entries}))
    text = page(tmp_path)
    assert "Excluded scores: 1" in text
    assert "positions in &lt;another&gt; build" in text


def test_fates_of_scores_rows_are_counted(tmp_path):
    """Flips are in the ledger of ``pgs`` alone, which is Parquet."""
    bed, folder, _, _ = cohort_and_scores(tmp_path)
    assert main(["pgs", str(folder), "--genotypes", str(bed), "--out", str(tmp_path / "d")]) == 0
    fates = pd.read_parquet(tmp_path / "d/reports/pgs_variants.parquet")["fate"].value_counts()
    assert fates["matched_flipped"] > 0
    text = page(tmp_path / "d")
    for fate, words in (("matched_flipped", "matched flipped"), ("absent", "absent")):
        assert f'<tr><td>{words}</td><td class="n">{fates[fate]}</td></tr>' in text


def test_the_ledger_of_expression_is_found_for_each_of_its_modalities(tmp_path):
    """rna, cnv and mutations share one ledger; each section counts its own lines."""
    table = "case_id,A_rnaseq,B_rnaseq,C_cnv,D_mut,E_mut,F_mut\n"
    (tmp_path / "t.csv").write_text(table + "".join(f"P{n},{n},{n * n},{n % 5 - 2},0,1,{n % 2}\n" for n in range(9)))
    dataset = tmp_path / "d"
    assert main(["expression", str(tmp_path / "t.csv"), "--out", str(dataset), "--test-fraction", "0"]) == 0
    sections = page(dataset).split("<h2 id=")
    assert len(sections) == 4
    for section, (name, features) in zip(sections[1:], (("rna", 2), ("cnv", 1), ("mutations", 3)), strict=True):
        assert section.startswith(f'"{name}"')
        assert f'<tr><td>kept</td><td class="n">{features}</td></tr>' in section
        assert f"Excluded: 0 of {features} rows of the ledger" in section


@pytest.mark.parametrize("damage", ["{", None])
def test_damaged_inputs_are_named(tmp_path, capsys, damage):
    assert main(["report", str(tmp_path)]) == 2
    assert "has no genetics" in capsys.readouterr().err
    dataset = write_dataset(tmp_path / "ds")
    (dataset / "reports").mkdir()
    for name in ["pgs.json"] if damage else ["snps_variants.tsv.gz", "pgs_variants.parquet"]:
        path = dataset / "reports" / name
        path.write_text(damage or "neither gzip nor parquet")
        assert main(["report", str(dataset)]) == 2
        assert name in capsys.readouterr().err
        path.unlink()
