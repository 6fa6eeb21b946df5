"""One cohort in six kinds of source, for ``snps``, ``pgs`` and ``burden``: equal stores, by one reader.

Beside every file lies a ``._`` file, as macOS writes it. Right values: the calls that :mod:`seeds` wrote.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.robustness.parsers import seeds
from tests.helpers.genetics_cases import complaint, opened, preprocess, unpacked

SOURCES = {
    "bed": (seeds.bed, ("--reference", "a2")),
    "pgen": (seeds.pgen, ()),
    "bgen": (seeds.bgen, ("--reference", "ref-first")),
    "vcf": (seeds.vcf, ()),
    "vcf_gz": (seeds.vcf_gz, ()),
    "vcf_bgzf": (seeds.vcf_bgzf, ()),
}
APPLE_DOUBLE = b"\x00\x05\x16\x07" + bytes(159)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    contents = {name: files() for name, (files, _) in SOURCES.items()}
    contents["scores"] = {"s.txt": seeds.scoring()["s.txt"]}
    contents["tables"] = {"annotations.txt": seeds.tables()["annotations.txt"]}
    for name, files in contents.items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_bytes(content)
            (folder / name / f"._{file}").write_bytes(APPLE_DOUBLE)
    return folder


@pytest.mark.parametrize("name", SOURCES)
def test_six_sources_give_one_store(tmp_path, inputs, name):
    source, reference = inputs / name, SOURCES[name][1]
    out = ("--out", tmp_path / "d", "--test-fraction", 0)
    preprocess("snps", source, "--stride", 1, *reference, *out)
    preprocess("pgs", inputs / "scores", "--genotypes", source, *out)
    table = ("--annotations", inputs / "tables/annotations.txt", "--mask", "LoF")
    preprocess("burden", source, *table, *reference, "--max-maf", 0.5, *out)
    report = json.loads((tmp_path / "d/reports/pgs.json").read_text())
    assert report["files"]["in_folder"] == 1, "a ._ file is no scoring file"
    calls = seeds.calls()
    snps, scores, burden = (opened(tmp_path / "d", modality) for modality in ("snps", "pgs", "burden"))
    order = [seeds.ids().index(participant) for participant in snps.participants]
    assert snps.features.name.tolist() == [f"rs{n}" for n in range(seeds.VARIANTS)]
    np.testing.assert_array_equal(unpacked(snps), np.where(calls < 0, 3, calls).T[order])
    known = np.where(calls < 0, np.nan, calls)
    filled = np.where(calls < 0, np.nanmean(known, axis=1, keepdims=True), known)
    sums = np.array([float(f"0.{n}5") for n in range(seeds.VARIANTS)]) @ filled
    np.testing.assert_allclose(unpacked(scores)[:, 0], ((sums - sums.mean()) / sums.std())[order], atol=2e-5)
    rare = np.flatnonzero(np.nanmean(known, axis=1) / 2 < 0.5)
    genes = [np.any(known[[row for row in rare if row % 2 == gene]] > 0, axis=0) for gene in range(2)]
    np.testing.assert_array_equal(unpacked(burden), np.array(genes).T[order])


def test_pipes_are_no_genotypes(tmp_path, capsys):
    """Reading one would wait for ever."""
    for name, content in seeds.bed().items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "y.bed")
    preprocess("snps", tmp_path, "--reference", "a2", "--stride", 1, "--out", tmp_path / "d", "--test-fraction", 0)
    message = complaint(capsys, "snps", tmp_path / "y.bed", "--reference", "a2", "--out", tmp_path / "e")
    assert "no regular file" in message
