"""Pseudonyms: keyed, stable, the same for images and genetics, never mixed."""

import gzip
import hashlib
import json
import time

import cv2
import numpy as np
import pytest
import zarr

from mrmfast.data.genetics.store import FeatureTable, GenomeStore, write_modality
from mrmfast.errors import UserError
from mrmfast.formats.manifest import SplitRule, claim_splits, read_manifest
from mrmfast.formats.pseudonyms import Pseudonyms
from mrmfast.formats.sample_table import read_sample_table
from preprocess.__main__ import main
from tests.helpers.common import write_dataset
from tests.helpers.genetics_cases import (
    complaint,
    csq,
    opened,
    preprocess,
    random_calls,
    scoring_file,
    write_bed,
    write_vcf,
)

KEY = "0123456789abcdef0123456789abcdef\n"


@pytest.fixture
def keyfile(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY)
    return path


def test_they_are_keyed_blake2b(keyfile):
    got = Pseudonyms.read(keyfile).of(["1000017", "é"])
    expected = hashlib.blake2b(b"1000017", key=KEY.strip().encode(), person=b"mrmfast-id", digest_size=16).hexdigest()
    assert got[0] == expected
    assert len(set(got)) == 2
    assert Pseudonyms(b"another key, 16+ bytes").of(["1000017"])[0] != expected


def test_without_a_key_ids_stay(tmp_path):
    assert Pseudonyms.read(None).of(["7", "8"]).tolist() == ["7", "8"]
    assert Pseudonyms().fingerprint == ""


@pytest.mark.parametrize("key", ["", "short", "x" * 65])
def test_a_weak_or_absent_key_is_refused(tmp_path, key):
    path = tmp_path / "key"
    if key:
        path.write_text(key)
    with pytest.raises(UserError, match=str(path)):
        Pseudonyms.read(path)


def test_images_and_genetics_join_under_pseudonyms(tmp_path, keyfile):
    pseudonyms = Pseudonyms.read(keyfile)
    source = [str(1000000 + i) for i in range(9)]
    claim_splits(tmp_path / "ds", SplitRule(0, 0.0))
    pseudonyms.claim(tmp_path / "ds")
    dataset = write_dataset(tmp_path / "ds", genetics=False, ids=pseudonyms.of(source).tolist())
    stored = pseudonyms.of(source[::-1])
    table = FeatureTable.build("abc", ["g"] * 3)
    write_modality(dataset, "pgs", "float", stored, table, [np.zeros((9, 3))])
    rows = GenomeStore.open(str(dataset)).locate(pseudonyms.of(source))
    assert rows[:, 0].tolist() == list(range(8, -1, -1))
    assert read_manifest(dataset).pseudonyms == pseudonyms.fingerprint
    # Tars and manifest are plain; no id of the source is in any of them.
    for path in (p for p in dataset.rglob("*") if p.is_file()):
        assert b"100000" not in path.read_bytes(), path.name


def test_a_dataset_keeps_to_one_key(tmp_path, keyfile):
    pseudonyms = Pseudonyms.read(keyfile)
    plain = write_dataset(tmp_path / "plain", genetics=False)
    with pytest.raises(UserError, match="without a key"):
        pseudonyms.claim(plain)
    Pseudonyms().claim(plain)
    pseudonyms.claim(tmp_path / "hidden")
    pseudonyms.claim(tmp_path / "hidden")
    for other in (Pseudonyms(), Pseudonyms(b"another key, 16+ bytes")):
        with pytest.raises(UserError, match="with another key"):
            other.claim(tmp_path / "hidden")


def test_half_a_million_take_seconds():
    start = time.perf_counter()
    Pseudonyms(b"a key of 16 bytes or more").of(map(str, range(500_000)))
    assert time.perf_counter() - start < 20


PEOPLE = [f"70010{number:02d}" for number in range(24)]


@pytest.fixture
def raw(tmp_path):
    """Sources of every command; two people have withdrawn, or are not on the list to keep."""
    from tests.preprocess.test_images import photograph

    (tmp_path / "raw").mkdir()
    ids = [*PEOPLE[:-2], "-" + PEOPLE[-2], PEOPLE[-1]]
    bed = write_bed(tmp_path / "raw/g.bed", random_calls(24, 8), ids)
    scoring_file(
        tmp_path / "raw/s.txt",
        "chr_name chr_position effect_allele other_allele effect_weight",
        ["1 1000 G A 0.5", "1 1010 G A 2"],
        genome_build="GRCh38",
    )
    annotations = [csq("T", "stop_gained", "HIGH", "GENE")]
    write_vcf(tmp_path / "raw/v.vcf", [("1", 10, "A", "T", annotations, {0: "0/1"})], ids)
    rows = [f"{one},{number},{number % 2},1" for number, one in enumerate(PEOPLE)]
    (tmp_path / "raw/t.csv").write_text("\n".join(["case_id,A_rnaseq,B_cnv,C_mut", *rows]) + "\n")
    (tmp_path / "keep").write_text("\n".join(PEOPLE[:-1]) + "\n")
    for kind in ("eyes", "tiles"):
        (tmp_path / "raw" / kind).mkdir()
    for number, one in enumerate(PEOPLE[:-2]):
        cv2.imwrite(str(tmp_path / f"raw/eyes/{one}_left_0.jpg"), photograph(number))
    cv2.imwrite(str(tmp_path / f"raw/eyes/{PEOPLE[0]}_right_0.jpg"), np.zeros((90, 90, 3), np.uint8))
    (tmp_path / f"raw/eyes/{PEOPLE[1]}_right_0.jpg").write_bytes(b"junk")
    stained = np.random.default_rng(0).integers(0, 90, (96, 96, 3)) + np.array([150, 60, 150])
    for name in ("TCGA-02-7001-01Z-00-DX1_1.png", "TCGA-02-7002-01Z-00-DX1_1.png"):
        cv2.imwrite(str(tmp_path / "raw/tiles" / name), stained.astype(np.uint8))
    return tmp_path / "raw", bed


def contents(dataset):
    """The bytes of every file; texts also as they read unpacked, strings of Zarr as they are stored."""
    for path in (p for p in dataset.rglob("*") if p.is_file()):
        data = path.read_bytes()
        yield path, data
        if path.suffix == ".gz":
            yield path, gzip.decompress(data)
    for path in dataset.rglob("zarr.json"):
        node = zarr.open(path.parent, mode="r")
        if isinstance(node, zarr.Array) and node.dtype.kind not in "iuf":
            yield path, "\n".join(map(str, np.asarray(node[:]).tolist())).encode()


def test_all_commands_store_pseudonyms_alone(tmp_path, raw, keyfile, capsys):
    folder, bed = raw
    out = ("--out", tmp_path / "ds", "--pseudonymise", keyfile)
    keep = ("--keep", tmp_path / "keep")
    preprocess("fundus", folder / "eyes", *out, "--size", 64, "--workers", 1, "--accept-unreadable")
    preprocess("snps", bed, "--reference", "a2", "--stride", 1, *out, *keep)
    preprocess("pgs", folder / "s.txt", "--genotypes", bed, *out, *keep)
    preprocess("burden", folder / "v.vcf", "--max-maf", 0.1, *out, *keep)
    preprocess("expression", folder / "t.csv", *out, *keep)
    preprocess("report", tmp_path / "ds")
    preprocess("check", tmp_path / "ds")
    assert "participant IDs are pseudonyms" in capsys.readouterr().out
    assert "participant IDs are pseudonyms" in (tmp_path / "ds/reports/genetics.html").read_text()
    pseudonyms = Pseudonyms.read(keyfile)
    stored = pseudonyms.of(PEOPLE[:-2]).tolist()
    for name in ("snps", "pgs", "burden"):
        assert opened(tmp_path / "ds", name).participants.tolist() == stored
    assert read_sample_table(str(tmp_path / "ds")).participant.tolist() == stored
    report = json.loads((tmp_path / "ds/reports/fundus.json").read_text())
    files = sorted(path.name for path in (folder / "eyes").iterdir())
    for kind, name in (("unreadable", f"{PEOPLE[1]}_right_0.jpg"), ("excluded", f"{PEOPLE[0]}_right_0.jpg")):
        assert report[kind][0]["file"] == f"file {files.index(name) + 1}"
    # The split goes by what is stored, for images and for statistics alike.
    train = [SplitRule().of(one) == "train" for one in stored]
    assert json.loads((tmp_path / "ds/reports/snps.json").read_text())["participants"]["training"] == sum(train)
    assert read_manifest(tmp_path / "ds").statistics["pixels"]["images"] == sum(train)
    for path, data in contents(tmp_path / "ds"):
        assert b"70010" not in data, path


def test_slides_names_are_hidden_too(tmp_path, raw, keyfile):
    folder, _ = raw
    out = ("--out", tmp_path / "ds", "--size", 32, "--workers", 1)
    preprocess("pathology", folder / "tiles", *out, "--pseudonymise", keyfile)
    stored = Pseudonyms.read(keyfile).of(["TCGA-02-7001", "TCGA-02-7002"])
    assert read_sample_table(str(tmp_path / "ds")).participant.tolist() == stored.tolist()
    seen = list(contents(tmp_path / "ds"))
    assert any(path.suffix == ".tar" and b'"slide"' in data for path, data in seen)
    assert not [path for path, data in seen if b"TCGA-02" in data]


def test_commands_refuse_to_mix(tmp_path, raw, keyfile, capsys):
    folder, bed = raw
    snps = ("snps", bed, "--reference", "a2", "--stride", 1)
    preprocess(*snps, "--out", tmp_path / "hidden", "--pseudonymise", keyfile)
    preprocess(*snps, "--out", tmp_path / "plain")
    for name, key, words in (("hidden", (), "another key"), ("plain", ("--pseudonymise", keyfile), "without a key")):
        more = ("--out", tmp_path / name, *key)
        assert words in complaint(capsys, "fundus", folder / "eyes", "--workers", 1, *more)
        assert words in complaint(capsys, "pgs", folder / "s.txt", "--genotypes", bed, *more)
        assert words in complaint(capsys, "burden", folder / "v.vcf", *more)
        assert words in complaint(capsys, "expression", folder / "t.csv", *more)


def test_check_finds_ids_that_are_none(tmp_path, capsys):
    pseudonyms = Pseudonyms(KEY.encode())
    claim_splits(tmp_path / "ds", SplitRule(0, 0.0))
    pseudonyms.claim(tmp_path / "ds")
    write_dataset(tmp_path / "ds", genetics=False, ids=["7001000", *pseudonyms.of(["7001001"]).tolist()])
    assert main(["check", str(tmp_path / "ds")]) == 1
    assert "index.zarr: 1 IDs are not pseudonyms" in capsys.readouterr().out
