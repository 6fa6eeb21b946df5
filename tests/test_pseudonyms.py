"""Pseudonyms: keyed, stable, the same for images and genetics, never mixed."""

import hashlib
import time

import numpy as np
import pytest
from conftest import write_dataset

from mrmfast.data.genome_store import FeatureTable, GenomeStore, write_modality
from mrmfast.data.manifest import SplitRule, claim_splits, read_manifest
from mrmfast.data.pseudonyms import Pseudonyms
from mrmfast.errors import UserError

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
