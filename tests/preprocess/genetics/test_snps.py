"""``preprocess snps`` against independent readers and handmade files."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from preprocess.genetics.snps import command as snps_command
from tests.helpers.genetics_cases import (
    DATA,
    RULE,
    all_bytes,
    complaint,
    opened,
    people,
    preprocess,
    random_calls,
    read_bed_by_hand,
    unpacked,
    write_bed,
)

HAPMAP = DATA / "genetics/hapmap3/HM3_thinned_autosomal_overlap.bed"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) is not here")
needs_plink2 = pytest.mark.skipif(shutil.which("plink2") is None, reason="plink2 is not installed")


def test_stride_gives_the_studys_7854_snps(tmp_path):
    """UK Biobank's array, one participant: every 100th SNP of each chromosome."""
    counts = (
        "63487 61966 52300 47443 46314 53695 42722 38591 34310 38308 40824 37302 26806 25509 24467 28960 28835 21962 "
        "26186 19959 11342 12968"
    )
    sizes = [int(count) for count in counts.split()]
    assert sum(sizes) == 784_256
    bed = tmp_path / "array.bed"
    codes = np.random.default_rng(0).choice(np.array([0, 2, 3], np.uint8), sum(sizes))
    bed.write_bytes(b"\x6c\x1b\x01" + codes.tobytes())
    bed.with_suffix(".fam").write_text("1 1 0 0 0 -9\n")
    bed.with_suffix(".bim").write_text(
        "".join(
            f"{number}\trs{number}_{n}\t0\t{n + 1}\tA\tG\n" for number, size in enumerate(sizes, 1) for n in range(size)
        )
    )
    preprocess("snps", bed, "--reference", "a2", "--out", tmp_path / "d", "--test-fraction", 0)
    modality = opened(tmp_path / "d", "snps")
    assert len(modality.features) == 7854
    assert len(range(0, sum(sizes), 100)) == 7843, "one stride over all chromosomes is another rule"
    assert modality.features.groups() == [(f"chr{number}", -(-size // 100)) for number, size in enumerate(sizes, 1)]
    starts = np.cumsum([0, *sizes[:-1]])
    kept = np.concatenate([np.arange(start, start + size, 100) for start, size in zip(starts, sizes, strict=True)])
    np.testing.assert_array_equal(unpacked(modality)[0], np.array([2, 3, 1, 0])[codes[kept]])


@needs_data
@pytest.mark.parametrize("reference", ["a2", "a1"])
def test_snps_equal_an_independent_reader(tmp_path, reference):
    preprocess("snps", HAPMAP, "--out", tmp_path, "--reference", reference, "--stride", 7)
    modality = opened(tmp_path, "snps")
    bim = [line.split() for line in HAPMAP.with_suffix(".bim").read_text().splitlines()]
    kept: list[int] = []
    for _, lines in itertools.groupby(range(len(bim)), key=lambda line: bim[line][0]):
        kept += list(lines)[::7]
    expected = read_bed_by_hand(HAPMAP)[:, kept]
    if reference == "a1":
        expected = np.where(expected == 3, 3, 2 - expected)
    np.testing.assert_array_equal(unpacked(modality), expected)
    features = modality.features
    assert features.name.tolist() == [bim[line][1] for line in kept]
    assert features.position.tolist() == [int(bim[line][3]) for line in kept]
    assert features.reference.tolist() == [bim[line][5 if reference == "a2" else 4] for line in kept]
    assert features.alternative.tolist() == [bim[line][4 if reference == "a2" else 5] for line in kept]
    assert modality.participants.tolist() == [
        line.split()[1] for line in HAPMAP.with_suffix(".fam").read_text().splitlines()
    ]
    train = np.array([RULE.of(one) == "train" for one in modality.participants])
    for column in range(0, len(kept), 53):
        values = expected[train, column]
        counts = [int((values == code).sum()) for code in (0, 1, 2)]
        assert features.fill[column] == counts.index(max(counts))


def test_fill_takes_the_smaller_on_ties_and_never_counts_missing():
    counts = np.array([[1, 1, 0, 2], [0, 2, 2, 0], [0, 0, 1, 3], [0, 0, 0, 4]])
    assert snps_command.fill_of(counts).tolist() == [0, 1, 2, 0]


def test_fill_is_fitted_on_the_training_split_alone(tmp_path):
    ids, calls = people(60), random_calls(60, 20)
    test = np.array([RULE.of(one) == "test" for one in ids])
    assert 0 < test.sum() < 60
    changed = calls.copy()
    changed[test] = 2
    for name, values in (("one", calls), ("two", changed)):
        bed = write_bed(tmp_path / name / "all.bed", values, ids)
        preprocess("snps", bed, "--out", tmp_path / f"{name}.out", "--reference", "a2", "--stride", 1)
    one, two = (opened(tmp_path / f"{name}.out", "snps").features.fill for name in ("one", "two"))
    np.testing.assert_array_equal(one, two)


def test_files_are_joined_by_id_and_withdrawn_or_unlisted_people_excluded(tmp_path):
    calls = random_calls(6, 4)
    ids = ["-1", "A", "B", "-2", "C", "D"]
    raw = tmp_path / "raw"
    write_bed(raw / "chr10.bed", calls, ids, chromosome=["chr10"] * 4, sid=list("abcd"))
    order = [5, 2, 1, 4, 0, 3]
    write_bed(raw / "chr2.bed", calls[order], [ids[row] for row in order], chromosome=["2", "2", "X", "23"])
    keep = tmp_path / "keep.txt"
    keep.write_text("A\nC\nD\nelsewhere\n")
    preprocess("snps", raw, "--out", tmp_path / "d", "--reference", "a2", "--stride", 1, "--keep", keep)
    modality = opened(tmp_path / "d", "snps")
    codes = dict(zip(modality.participants.tolist(), unpacked(modality).tolist(), strict=True))
    assert sorted(codes) == ["A", "C", "D"]
    assert modality.features.groups() == [("chr2", 2), ("chr10", 4)]
    for row, one in ((1, "A"), (4, "C"), (5, "D")):
        mine = np.where(calls[row] < 0, 3, calls[row]).tolist()
        assert codes[one] == mine[:2] + mine
    report = json.loads((tmp_path / "d/reports/snps.json").read_text())
    assert report["participants"]["withdrawn"] == 2
    assert report["participants"]["keep_ids_absent"] == 1
    assert report["variants"]["not_autosomal"] == 2


def test_repeated_variant_ids_keep_the_first(tmp_path):
    calls = random_calls(8, 5)
    bed = write_bed(tmp_path / "a.bed", calls, people(8), sid=["x", "y", "x", ".", "."])
    preprocess("snps", bed, "--out", tmp_path / "d", "--reference", "a2", "--stride", 1, "--test-fraction", 0)
    modality = opened(tmp_path / "d", "snps")
    assert modality.features.name.tolist() == ["x", "y", "1:1030:A:G", "1:1040:A:G"]
    np.testing.assert_array_equal(unpacked(modality), np.where(calls < 0, 3, calls)[:, [0, 1, 3, 4]])
    with gzip.open(tmp_path / "d/reports/snps_variants.tsv.gz", "rt") as file:
        assert [line.split("\t")[6] for line in file][1:] == ["kept", "kept", "duplicate_id", "kept", "kept"]


def test_mistakes_in_genotypes_are_named(tmp_path, capsys):
    def fresh(name: str) -> Path:
        return write_bed(tmp_path / name / "g.bed", random_calls(8, 5), people(8))

    def complain(source: Path, *more: object) -> str:
        return complaint(capsys, "snps", source, "--out", tmp_path / "d", "--stride", 1, *more)

    a2 = ("--reference", "a2")
    assert "--reference" in complain(fresh("ref"))
    assert "does not exist" in complain(tmp_path / "nowhere", *a2)
    for suffix in (".bim", ".fam"):
        fresh(suffix).with_suffix(suffix).unlink()
        assert f"g{suffix}" in complain(tmp_path / suffix, *a2)
    cut = fresh("cut")
    cut.write_bytes(cut.read_bytes()[:-1])
    assert "truncated" in complain(cut, *a2)
    fam = fresh("fam").with_suffix(".fam")
    lines = fam.read_text().splitlines()
    fam.write_text("\n".join([*lines[:2], "P002 P002 0 0 0", *lines[3:]]) + "\n")
    message = complain(fam.with_suffix(".bed"), *a2)
    assert "g.fam" in message
    assert "line 3 has 5 columns" in message
    bim = fresh("bim").with_suffix(".bim")
    bim.write_text(bim.read_text().replace("1010", "10x0"))
    assert "line 2" in complain(bim.with_suffix(".bed"), *a2)
    write_bed(tmp_path / "two/chr1.bed", random_calls(8, 5), people(8))
    write_bed(tmp_path / "two/chr2.bed", random_calls(7, 5), people(7), chromosome=["2"] * 5)
    assert "chr2.fam" in complain(tmp_path / "two", *a2)
    (tmp_path / "keep").write_text("nobody\n")
    message = complain(fresh("keep-none"), *a2, "--keep", tmp_path / "keep")
    assert "none of the 1 IDs" in message
    write_bed(tmp_path / "same/g.bed", random_calls(8, 5), [*people(7), "P000"])
    message = complain(tmp_path / "same", *a2)
    assert "samples 1 and 8" in message
    assert "P000" not in message
    assert not (tmp_path / "d" / "dataset.json").exists(), "a failed try must not bind the dataset to a split"


def test_listed_variants_at_another_position_are_excluded_and_reported(tmp_path, capsys):
    calls = random_calls(8, 5)
    bed = write_bed(tmp_path / "a.bed", calls, people(8))
    listed = tmp_path / "list"
    command = ("snps", bed, "--reference", "a2", "--variants", listed, "--test-fraction", 0)
    listed.write_text("rs1 1 1000\nrs2 1 1011\nrs3 2 1020\nrs4 1 1030\nrs5\nrs9\nrs4\n")
    preprocess(*command, "--out", tmp_path / "d")
    assert "2 variants have another position than in the list" in capsys.readouterr().out
    modality = opened(tmp_path / "d", "snps")
    assert modality.features.name.tolist() == ["rs1", "rs4", "rs5"]
    np.testing.assert_array_equal(unpacked(modality), np.where(calls < 0, 3, calls)[:, [0, 3, 4]])
    report = json.loads((tmp_path / "d/reports/snps.json").read_text())["variants"]
    assert (report["picked"], report["listed_elsewhere"], report["listed_absent"]) == (3, 2, 1)
    with gzip.open(tmp_path / "d/reports/snps_variants.tsv.gz", "rt") as file:
        fates = [line.split("\t")[6] for line in file][1:]
    assert fates == ["kept", "listed_elsewhere", "listed_elsewhere", "kept", "kept"]
    listed.write_text("rs1 1 1000\nrs2 1 1010\nrs1 1 1001\n")
    assert "list: line 3: an earlier line gives another position" in complaint(
        capsys, *command, "--out", tmp_path / "e"
    )
    listed.write_text("rs1 1 1001\nrs2 1 1010\nrs3 1 1021\n")
    assert "2 of 3 variants have another position" in complaint(capsys, *command, "--out", tmp_path / "e")


# --- reruns --------------------------------------------------------------------------------------------------------


def test_reruns_give_equal_bytes_and_refuse_to_overwrite(tmp_path, capsys):
    bed = write_bed(tmp_path / "all.bed", random_calls(40, 8), people(40))
    command = ("snps", bed, "--reference", "a2", "--stride", 2)
    for name in ("one", "two"):
        preprocess(*command, "--out", tmp_path / name)
    one, two = all_bytes(tmp_path / "one"), all_bytes(tmp_path / "two")
    assert one == two
    assert not any(b"P001" in content for name, content in one.items() if name.startswith("reports"))
    assert "already exists" in complaint(capsys, *command, "--out", tmp_path / "one")
    shutil.rmtree(tmp_path / "one/genetics.zarr/snps")
    message = complaint(capsys, *command, "--out", tmp_path / "one", "--split-seed", 1)
    assert "split seed" in message
