"""The packed store: joint rows, one copy a node, killed builders, object stores, lookup."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from mrmfast.data.genetics.store import FeatureTable, GenomeStore, ModalityWriter, pack_rows, write_modality
from mrmfast.data.genetics.table import lay_out
from mrmfast.errors import UserError
from mrmfast.formats import genetics
from mrmfast.storage.source import DatasetSource
from tests.helpers.common import write_dataset


def features(count):
    return FeatureTable.build([f"f{i}" for i in range(count)], ["g"] * count)


def write_overlapping(path, float_dtype="float32"):
    """Three modalities whose participants overlap in part and stand in different orders."""
    generator = np.random.default_rng(3)
    people = {
        "snps": [f"p{i}" for i in range(40)],
        "pgs": [f"p{i}" for i in generator.permutation(np.arange(20, 60))],
        "burden": [f"p{i}" for i in generator.permutation(np.arange(0, 70, 2))] + ["é-ü"],
    }
    values = {
        "snps": generator.integers(-1, 3, (40, 13)),
        "pgs": generator.standard_normal((40, 5)).astype(np.float32),
        "burden": generator.integers(0, 2, (36, 19)),
    }
    kinds = {"snps": "genotype", "pgs": "float", "burden": "binary"}
    for name, kind in kinds.items():
        write_modality(
            path, name, kind, people[name], features(values[name].shape[1]), [values[name]], float_dtype=float_dtype
        )
    packed = {name: pack_rows(kind, values[name], float_dtype) for name, kind in kinds.items()}
    return people, packed


@pytest.mark.parametrize("float_dtype", ["float32", "float16"])
@pytest.mark.parametrize("names", [None, ["burden"], ["pgs", "snps"]])
def test_gather_gives_every_modality_of_its_participant(tmp_path, names, float_dtype):
    people, packed = write_overlapping(tmp_path, float_dtype)
    store = GenomeStore.open(str(tmp_path), names)
    asked = np.array(["p25", "nobody", "p61", "é-ü", "p0", "p59", "p24", "p24", "p60-longer-than-any-id"], dtype=object)
    rows = store.locate(asked)
    got = store.gather(rows)
    absent = {"genotype": 0xFF, "binary": 0, "float": np.nan}
    for number, modality in enumerate(store.modalities):
        assert got[number].dtype == packed[modality.name].dtype
        for place, one in enumerate(asked):
            known = one in people[modality.name]
            assert (rows[place, number] >= 0) == known
            expected = packed[modality.name][people[modality.name].index(one)] if known else absent[modality.encoding]
            assert np.array_equal(
                got[number][place], np.full(got[number].shape[1], expected), equal_nan=modality.encoding == "float"
            )
        order = [people[modality.name].index(one) for one in modality.participants]
        assert len(order) == len(people[modality.name])
        assert np.array_equal(modality.rows, packed[modality.name][order])


def test_rows_of_uk_biobank_fit_in_six_and_a_half_kilobytes():
    widths = (("snps", "genotype", 7854), ("pgs", "float", 481), ("burden", "binary", 18574))
    dtypes = {"genotype": np.uint8, "binary": np.uint8}
    for float_dtype in ("float32", "float16"):
        arrays = [
            (name, kind, np.empty((0, genetics.packed_width(kind, count)), dtypes.get(kind, float_dtype)))
            for name, kind, count in widths
        ]
        columns, stride = lay_out(arrays)
        assert stride == {"float32": 6212, "float16": 5252}[float_dtype]
        assert all(one.start % 4 == 0 for one in columns)


def test_float16_refuses_what_it_cannot_hold():
    with pytest.raises(UserError, match="65504"):
        pack_rows("float", np.array([[1e5]]), "float16")
    assert np.isnan(pack_rows("float", np.array([[np.nan]]), "float16")).all()


def test_packed_blocks_write_the_same_bytes(tmp_path):
    values = np.random.default_rng(0).integers(-1, 3, (30, 11))
    ids = list(map(str, range(30)))
    write_modality(tmp_path / "a", "snps", "genotype", ids, features(11), [values])
    blocks = [pack_rows("genotype", part) for part in (values[:7], values[7:])]
    with ModalityWriter(tmp_path / "b", "snps", "genotype", ids, features(11)) as writer:
        for block in blocks:
            writer.append_packed(block)
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file() and path.name != ".dataset.lock":
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def _open_in_rank(path, cache, barrier, results):
    import mrmfast.data.genetics.table as table

    built = []
    original = table._build
    table._build = lambda *arguments: (built.append(1), original(*arguments))
    barrier.wait()
    store = GenomeStore.open(path, cache=cache)
    results.put((len(built), store.table.rows.filename, os.stat(store.table.rows.filename).st_ino))


def test_ranks_of_a_node_share_one_copy_built_once(tmp_path):
    write_overlapping(tmp_path / "ds")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    arguments = (str(tmp_path / "ds"), str(tmp_path / "cache"), barrier, results)
    ranks = [context.Process(target=_open_in_rank, args=arguments) for _ in range(4)]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=120) for _ in ranks]
    for rank in ranks:
        rank.join()
    assert sum(built for built, _, _ in found) == 1
    assert len({inode for _, _, inode in found}) == 1


def test_another_content_is_another_copy(tmp_path):
    write_overlapping(tmp_path / "a")
    write_overlapping(tmp_path / "b", "float16")
    cache = str(tmp_path / "cache")
    first, second = (GenomeStore.open(str(tmp_path / name), cache=cache) for name in "ab")
    assert first.table.rows.filename != second.table.rows.filename
    assert GenomeStore.open(str(tmp_path / "a"), cache=cache).table.rows.filename == first.table.rows.filename


BUILDER = """
import sys, time
import numpy as np
import mrmfast.data.genetics.table as table
from mrmfast.data.genetics.store import GenomeStore

class Slow:
    def __init__(self, inner): self.inner, self.shape, self.dtype, self.shards = inner, inner.shape, inner.dtype, (1,)
    def __getitem__(self, index):
        print("row", flush=True)
        time.sleep(60)

build = table._build
table._build = lambda final, arrays, ids: build(final, [(n, k, Slow(a)) for n, k, a in arrays], ids)
GenomeStore.open(sys.argv[1], cache=sys.argv[2])
"""


def test_a_killed_builder_leaves_nothing_behind(tmp_path):
    people, packed = write_overlapping(tmp_path / "ds")
    write_overlapping(tmp_path / "other", "float16")
    cache = tmp_path / "cache"
    for dataset in ("ds", "other"):
        builder = subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path / dataset), str(cache)], stdout=subprocess.PIPE, text=True
        )
        assert builder.stdout.readline() == "row\n"
        builder.send_signal(signal.SIGKILL)
        builder.wait()
    assert any(cache.glob(".genome-*.partial"))
    store = GenomeStore.open(str(tmp_path / "ds"), cache=str(cache))
    assert np.array_equal(store.modalities[0].rows, packed["snps"])
    assert not any(cache.glob(".genome-*.partial"))
    assert store.locate(np.array(people["snps"], dtype=object))[:, 0].tolist() == list(range(40))


def test_the_copy_is_private_to_its_owner(tmp_path):
    write_overlapping(tmp_path / "ds")
    store = GenomeStore.open(str(tmp_path / "ds"), cache=str(tmp_path / "cache"))
    assert Path(store.table.rows.filename).parent.stat().st_mode & 0o077 == 0


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    write_overlapping(tmp_path / "ds")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache"):
        GenomeStore.open(str(tmp_path / "ds"), cache=str(tmp_path / "file" / "cache"))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    write_overlapping(tmp_path / "ds")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no space left"):
        GenomeStore.open(str(tmp_path / "ds"), cache=str(tmp_path / "cache"))


def test_damage_in_a_chunk_stops_the_reader(tmp_path):
    write_overlapping(tmp_path)
    chunk = next(
        path
        for path in (tmp_path / "genetics.zarr" / "pgs" / "rows").rglob("*")
        if path.is_file() and path.parent.parent.name == "c"
    )
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        GenomeStore.open(str(tmp_path), cache=str(tmp_path / "cache"))


def test_an_object_store_gives_the_same_rows(tmp_path, upload, monkeypatch):
    local = write_dataset(tmp_path / "ds")
    url = upload(local, "genome-store")
    # Caches apart: equal content would otherwise be found by its checksum and nothing would be read remotely.
    near = GenomeStore.open(str(local), cache=str(tmp_path / "near"))
    far = GenomeStore.open(url, store=DatasetSource(url).zarr_store(), cache=str(tmp_path / "far"))
    assert far.groups() == near.groups()
    for one, other in zip(near.modalities, far.modalities, strict=True):
        assert np.array_equal(one.rows, other.rows, equal_nan=one.encoding == "float")
        assert one.participants.tolist() == other.participants.tolist()


def test_half_a_million_ids_are_found_in_seconds(tmp_path):
    ids = [str(1_000_000 + 7 * i) for i in range(500_000)]
    blocks = (np.zeros((50_000, 1), dtype=np.uint8) for _ in range(10))
    with ModalityWriter(tmp_path, "burden", "binary", ids, features(1)) as writer:
        for block in blocks:
            writer.append_packed(block)
    store = GenomeStore.open(str(tmp_path))
    order = np.random.default_rng(0).permutation(len(ids))
    asked = np.array(ids, dtype=object)[order]
    start = time.perf_counter()
    rows = store.locate(asked)
    assert time.perf_counter() - start < 10
    assert np.array_equal(rows[:, 0], order)


def test_stock_zarr_still_reads_a_sealed_modality(tmp_path):
    people, packed = write_overlapping(tmp_path, "float16")
    group = zarr.open_group(str(tmp_path / "genetics.zarr"), mode="r")
    assert np.array_equal(group["pgs/rows"][:], packed["pgs"])
    assert group["snps/participants"][:].tolist() == people["snps"]
