"""Expression, copy number and mutations against independent pandas computations, and killed runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mrmfast.formats.manifest import updating
from preprocess.__main__ import main
from preprocess.genetics.expression import command as expression
from tests.helpers.genetics_cases import DATA, RULE, all_bytes, complaint, needs_data, opened, preprocess, unpacked

CLEAN = DATA / "genetics/tcga/tcga_gbmlgg_all_clean.csv.zip"
TABLE = "case_id,A_rnaseq,C_cnv,D_mut\nP001,1,0,1\nP002,3,1,0\nP003,4,1,0\nP004,5,0,0\n"


@needs_data
def test_569_real_cases_are_stored_value_by_value(tmp_path):
    preprocess("expression", CLEAN, "--out", tmp_path / "d")
    table = pd.read_csv(CLEAN, index_col=0)
    cases = table.groupby("case_id", sort=False).first()
    assert (len(table), len(cases)) == (1011, 569)
    # Slides of a case agree, so that the first stands for all.
    suffixes = "_rnaseq$|_cnv$|_mut$"
    assert (table.filter(regex=suffixes).groupby(table["case_id"]).nunique().max() <= 1).all()
    train = np.array([RULE.of(case) == "train" for case in cases.index])
    assert 400 < train.sum() < 569
    counts = {}
    for name, suffix in (("rna", "_rnaseq"), ("cnv", "_cnv"), ("mutations", "_mut")):
        modality = opened(tmp_path / "d", name)
        expected = cases.filter(regex=f"{suffix}$")
        counts[name] = expected.shape[1]
        assert modality.participants.tolist() == cases.index.tolist()
        assert [one + suffix for one in modality.features.name] == expected.columns.tolist()
        if name == "rna":
            fitted = expected[train]
            mean, scale = fitted.mean(), fitted.std(ddof=0)
            np.testing.assert_allclose(modality.features.mean, mean, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(modality.features.scale, scale, rtol=1e-5)
            expected = (expected - mean) / scale
            np.testing.assert_allclose(modality.rows, expected.to_numpy(), atol=2e-6, rtol=1e-5)
        else:
            np.testing.assert_array_equal(unpacked(modality), expected.to_numpy())
    assert sum(counts.values()) == table.filter(regex=suffixes).shape[1]
    report = json.loads((tmp_path / "d/reports/expression.json").read_text())
    assert report["participants"]["slides"] == 1011
    assert report["participants"]["cases_whose_slides_differ"] == 0


@pytest.mark.parametrize("killed_at", [0, 1, 2])
@pytest.mark.parametrize("listed", [True, False])
def test_a_run_killed_between_modalities_is_completed_by_a_rerun(tmp_path, monkeypatch, killed_at, listed):
    """A kill leaves a whole modality, entered in the manifest or not yet; the same command must finish the unit."""
    (tmp_path / "t.csv").write_text(TABLE)
    command = ("expression", tmp_path / "t.csv", "--test-fraction", 0)
    write, done = expression.write_modality, []

    def dying(dataset: Path, name: str, *arguments: object, **more: object) -> None:
        if len(done) == killed_at and listed:
            raise KeyboardInterrupt
        write(dataset, name, *arguments, **more)
        done.append(name)
        if len(done) == killed_at + 1:
            with updating(tmp_path / "d") as manifest:
                del manifest.genetics[name]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(expression, "write_modality", dying)
        assert main([str(one) for one in (*command, "--out", tmp_path / "d")]) == 130
    preprocess(*command, "--out", tmp_path / "d")
    preprocess(*command, "--out", tmp_path / "e")
    assert all_bytes(tmp_path / "d") == all_bytes(tmp_path / "e")


def test_a_modality_of_another_table_is_never_removed(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("case_id,A_rnaseq\nP001,1\nP002,3\n")
    preprocess("expression", tmp_path / "t.csv", "--test-fraction", 0, "--out", tmp_path / "d")
    before = all_bytes(tmp_path / "d/genetics.zarr")
    (tmp_path / "u.csv").write_text(TABLE)
    message = complaint(capsys, "expression", tmp_path / "u.csv", "--test-fraction", 0, "--out", tmp_path / "d")
    assert "rna: already exists" in message
    assert all_bytes(tmp_path / "d/genetics.zarr") == before


def test_reruns_give_equal_bytes_and_refuse_to_overwrite(tmp_path, capsys):
    (tmp_path / "t.csv").write_text(TABLE)
    for name in ("one", "two"):
        preprocess("expression", tmp_path / "t.csv", "--out", tmp_path / name)
    one, two = all_bytes(tmp_path / "one"), all_bytes(tmp_path / "two")
    assert one == two
    assert not any(b"P001" in content for name, content in one.items() if name.startswith("reports"))
    assert "already exists" in complaint(capsys, "expression", tmp_path / "t.csv", "--out", tmp_path / "one")


def test_statistics_come_from_the_training_split_alone(tmp_path):
    cases = [f"P{number:03d}" for number in range(40)]
    values = np.random.default_rng(0).standard_normal(40)
    test = np.array([RULE.of(case) == "test" for case in cases])
    assert 0 < test.sum() < 40
    for name, column in (("one", values), ("two", np.where(test, 1e6, values))):
        rows = [f"{case},{value!r}" for case, value in zip(cases, column.tolist(), strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["case_id,A_rnaseq", *rows]) + "\n")
        preprocess("expression", tmp_path / f"{name}.csv", "--out", tmp_path / name)
    one, two = (opened(tmp_path / name, "rna").features for name in ("one", "two"))
    assert one.mean == two.mean
    assert one.scale == two.scale


@needs_data
def test_expression_on_eight_real_patients(tmp_path, capsys):
    source = DATA / "pathology/tcga_gbmlgg/genomics_8patients.csv"
    message = complaint(capsys, "expression", source, "--out", tmp_path / "x", "--test-fraction", 0.99)
    assert "--test-fraction 0" in message
    preprocess("expression", source, "--out", tmp_path / "d", "--test-fraction", 0)
    table = pd.read_csv(source)
    rna, cnv, mutations = (opened(tmp_path / "d", name) for name in ("rna", "cnv", "mutations"))
    raw = table.filter(regex="_rnaseq$").to_numpy(np.float64)
    constant = raw.std(axis=0) == 0
    scale = np.where(constant, 1, raw.std(axis=0))
    np.testing.assert_allclose(rna.rows, (raw - raw.mean(axis=0)) / scale, atol=1e-5)
    assert rna.features.name[0] == "AAK1"
    assert max(size for _, size in rna.features.groups()) <= 256
    np.testing.assert_array_equal(cnv.rows, table.filter(regex="_cnv$").to_numpy(np.float32))
    np.testing.assert_array_equal(unpacked(mutations), table.filter(regex="_mut$").to_numpy())
    assert rna.participants.tolist() == table["case_id"].tolist()


def test_slides_of_a_case_become_one_row(tmp_path):
    text = "case_id,slide_id,A_rnaseq,B_rnaseq,C_cnv,D_mut\n"
    text += "P2,s1,1,5,,\nP1,s2,3,5,-2,1\nP2,s3,2,5,,\nP3,s4,,5,1,0\nP1,s5,3,5,-2,1\n"
    (tmp_path / "t.csv").write_text(text)
    preprocess("expression", tmp_path / "t.csv", "--out", tmp_path / "d", "--test-fraction", 0)
    rna, cnv, mutations = (opened(tmp_path / "d", name) for name in ("rna", "cnv", "mutations"))
    assert rna.participants.tolist() == ["P2", "P1", "P3"]
    np.testing.assert_array_equal(rna.rows, np.array([[-1, 0], [1, 0], [np.nan, 0]], np.float32))
    np.testing.assert_array_equal(cnv.rows, np.array([[np.nan], [-2], [1]], np.float32))
    assert unpacked(mutations).tolist() == [[0], [1], [0]]
    report = json.loads((tmp_path / "d/reports/expression.json").read_text())
    assert report["participants"]["cases_whose_slides_differ"] == 1
    assert report["modalities"]["mutations"]["missing_values"] == 1
    assert report["modalities"]["rna"]["constant_in_training"] == 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("patient,A_rnaseq\nP1,1\n", "no column case_id"),
        ("case_id,A\nP1,1\n", "_rnaseq"),
        ("case_id,A_rnaseq\n", "no rows"),
        ("case_id,A_rnaseq\nP1,1\nP2,high\n", "line 3: column A_rnaseq"),
        ("case_id,A_mut\nP1,1\nP2,2\n", "A_mut"),
        ("case_id,A_rnaseq,B,A_rnaseq\nP1,1,2,3\n", "line 1 names column A_rnaseq 2 times"),
        ("case_id,case_id,A_rnaseq\nP1,P2,1\n", "line 1 names column case_id 2 times"),
        ("", "cannot be read"),
    ],
)
def test_mistakes_in_tables_are_named(tmp_path, capsys, text, word):
    (tmp_path / "t.csv").write_text(text)
    message = complaint(capsys, "expression", tmp_path / "t.csv", "--out", tmp_path / "d", "--test-fraction", 0)
    assert "t.csv" in message
    assert word in message
