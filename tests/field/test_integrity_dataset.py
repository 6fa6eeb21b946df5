"""What is read of a dataset is what was written: missing, changed, swapped and unexpected files."""

import json
import os
import random
import shutil
import threading

import numpy as np
import pytest

from benchmarks.robustness import corruption, fuzz, subjects
from mrmfast import native
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.errors import UserError
from mrmfast.formats.checksums import seal
from mrmfast.formats.manifest import updating
from mrmfast.storage import source as sources
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.source import DatasetSource
from preprocess.__main__ import main
from tests.helpers.common import write_dataset


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    dataset = write_dataset(tmp_path_factory.mktemp("sound") / "ds")
    subjects.add_reports(dataset)
    return dataset


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "ds")


def content(dataset, tmp_path):
    return subjects.dataset_content(str(dataset), tmp_path / "cache")


CHUNKS = [
    "pgs/rows/c/0/0",
    "snps/participants/c/0",
    "snps/features/fill/c/0",
    "burden/rows/c/0/0",
    "burden/features/zarr.json",
]


@pytest.mark.parametrize("name", CHUNKS)
def test_an_incomplete_copy_is_refused_and_leaves_no_wrong_cache(sound, copy, tmp_path, name):
    missing = copy / "genetics.zarr" / name
    missing.unlink()
    with pytest.raises(UserError, match=f"{missing}: is missing; copy the dataset again"):
        content(copy, tmp_path)
    shutil.copyfile(sound / "genetics.zarr" / name, missing)
    assert content(copy, tmp_path) == content(sound, tmp_path / "other")


def test_an_absent_chunk_of_zeros_is_no_damage(tmp_path):
    """Zarr does not write chunks of fill values; a file that appears there later is refused."""
    dataset = write_dataset(tmp_path / "ds")
    column = dataset / "genetics.zarr/snps/features/position"
    assert not list(column.glob("c/*"))
    content(dataset, tmp_path)
    (column / "c").mkdir()
    shutil.copyfile(dataset / "genetics.zarr/snps/features/scale/c/0", column / "c/0")
    with pytest.raises(UserError, match=r"position/c/0: does not belong there; remove it"):
        content(dataset, tmp_path)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("genetics.zarr/snps/zarr.json", '"genotype"', '"binary"'),
        ("genetics.zarr/pgs/rows/zarr.json", '"float32"', '"int32"'),
        ("images/index.zarr/offset/zarr.json", '"fill_value": 0', '"fill_value": 9'),
    ],
)
def test_edited_metadata_is_refused(copy, tmp_path, path, old, new):
    text = (copy / path).read_text()
    assert old in text
    (copy / path).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=f"{path}: damaged"):
        content(copy, tmp_path)


def test_swapped_files_are_refused(copy, tmp_path):
    one, other = (copy / f"images/index.zarr/{name}/c/0" for name in ("offset", "size"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    with pytest.raises(UserError, match=r"/c/0: damaged"):
        content(copy, tmp_path)


def flip(path, place=-600):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)


def test_a_bit_in_a_local_shard_is_refused_and_the_key_turns_it_off(copy, tmp_path):
    shard = copy / "images/shard-000001.tar"
    flip(shard, 700)
    with pytest.raises(UserError, match=f"{shard}: damaged .*data.fetch.verify_local=false"):
        content(copy, tmp_path)
    config = DataConfig(path=str(copy), cache=str(tmp_path / "cache"), fetch=FetchConfig(verify_local=False))
    with open_dataset(config).source as source:
        assert source.local(source.manifest().shards[1]) == shard


def test_shards_are_hashed_once_a_node_and_boot_and_after_each_write(copy, tmp_path, monkeypatch):
    hashed = []
    original = sources.file_sha256
    monkeypatch.setattr(sources, "file_sha256", lambda path: (hashed.append(path.name), original(path))[1])

    def rank():
        with DatasetSource(str(copy), str(tmp_path / "cache")) as source:
            for shard in source.manifest().shards:
                source.local(shard)
                source.release(shard)
                source.local(shard)

    ranks = [threading.Thread(target=rank) for _ in range(4)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    names = [f"shard-{number:06d}.tar" for number in range(4)]
    assert sorted(hashed) == names, "the ranks share the work"
    shard = copy / "images" / names[2]
    shard.write_bytes(shard.read_bytes())  # the same bytes, but who knows
    rank()
    assert hashed[4:] == [names[2]]
    monkeypatch.setattr("mrmfast.storage.stamp.boot_id", lambda: "another boot")
    rank()
    assert sorted(hashed[5:]) == names


def test_a_cache_that_cannot_be_written_hashes_at_each_start(copy, tmp_path):
    (tmp_path / "file").write_text("")
    with DatasetSource(str(copy), str(tmp_path / "file/cache")) as source:
        shards = source.manifest().shards
        source.local(shards[0])
        flip(copy / shards[1].path, 700)
        with pytest.raises(UserError, match="damaged"):
            source.local(shards[1])


FILES = ("rows.npy", "present.npy", "ids.npy", "row_of.npy", "key", "checksums.json")


WAYS = [*((name, "bit") for name in FILES), ("rows.npy", "cut"), ("ids.npy", "missing"), ("row_of.npy", "garbage")]


@pytest.mark.parametrize(("name", "how"), [*WAYS, ("checksums.json", "missing"), ("key", "cut")])
def test_a_damaged_table_of_the_cache_is_built_again_and_named(sound, tmp_path, capsys, name, how):
    right = content(sound, tmp_path)
    (table,) = (tmp_path / "cache").glob("genome-*[0-9a-f]")
    path = table / name
    raw = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    else:
        raw[len(raw) // 2] ^= 1
        path.write_bytes({"bit": raw, "cut": raw[: len(raw) // 2], "garbage": os.urandom(len(raw))}[how])
    capsys.readouterr()
    assert content(sound, tmp_path) == right
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert str(table) in line
    assert "built again" in line
    assert content(sound, tmp_path) == right
    assert "warning" not in capsys.readouterr().err


def test_the_table_of_another_dataset_is_not_taken(sound, tmp_path, capsys):
    other = write_dataset(tmp_path / "other", participants=20)
    right = content(sound, tmp_path)
    (mine,) = (tmp_path / "cache").glob("genome-*[0-9a-f]")
    content(other, tmp_path)
    (theirs,) = set((tmp_path / "cache").glob("genome-*[0-9a-f]")) - {mine}
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    assert content(sound, tmp_path) == right
    assert "belongs to another dataset" in capsys.readouterr().err


def test_a_table_is_verified_once_a_boot(sound, tmp_path, monkeypatch):
    content(sound, tmp_path)
    calls = []
    monkeypatch.setattr("mrmfast.data.genetics.table.checksums.damage", lambda *given: calls.append(given) or [])
    content(sound, tmp_path)
    assert not calls
    monkeypatch.setattr("mrmfast.storage.stamp.boot_id", lambda: "another boot")
    content(sound, tmp_path)
    assert len(calls) == 1


def test_over_http_a_missing_object_is_no_chunk_of_zeros(sound, copy, tmp_path):
    with subjects.served(tmp_path) as url:
        right = subjects.dataset_content(f"{url}/ds", tmp_path / "one")
        assert right == content(sound, tmp_path)
        (copy / "genetics.zarr/pgs/rows/c/0/0").unlink()
        with pytest.raises(UserError, match=r"pgs/rows/c/0/0: not there"):
            subjects.dataset_content(f"{url}/ds", tmp_path / "two")


def test_a_cached_download_that_was_written_to_is_fetched_again(sound, tmp_path):
    with subjects.served(sound.parent) as url:
        right = subjects.dataset_content(f"{url}/ds", tmp_path)
        for path in tmp_path.glob("*.tar"):
            flip(path)
        assert subjects.dataset_content(f"{url}/ds", tmp_path) == right


def test_sampled_cases_of_the_corruption_matrix(tmp_path):
    matrix = corruption.Matrix(random.Random(7), 0.02)
    assert corruption.dataset_cases(matrix, tmp_path / "dataset") == 0
    assert not matrix.bad
    assert matrix.total("dataset", "refused") > 2


@pytest.mark.parametrize("parser", ["manifest", "checksums.json", "sample table", "genetics", "state.json", "log"])
def test_sampled_mutations_give_a_value_or_one_line(tmp_path, parser):
    parse = fuzz.Subjects(tmp_path).cases()[parser]
    counts, bad, slowest = fuzz.run(parse, 20, seed=1)
    assert not bad
    assert slowest < 10
    assert parser == "log" or counts["refused"] > 5


SHAPES = {
    "images/index.zarr/key": [10**15],
    "genetics.zarr/pgs/rows": [10**9, 10**9],
    "genetics.zarr/pgs/features/name": [-1],
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_hostile_writer_who_seals_again_is_refused_in_one_line(copy, tmp_path, name):
    path = copy / name / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": SHAPES[name]}))
    with updating(copy) as manifest:
        if "index" in name:
            manifest.index_sha256 = seal(copy / "images/index.zarr")
        else:
            manifest.genetics["pgs"]["sha256"] = seal(copy / "genetics.zarr/pgs")
    with pytest.raises(UserError, match="damaged") as caught:
        content(copy, tmp_path)
    assert "\n" not in str(caught.value)


def edited(copy, change):
    path = copy / "dataset.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=1))
    return path


CHANGES = {
    "samples": lambda d: d["images"].update(samples="122"),
    "fraction": lambda d: d["splits"].update(test_fraction=float("nan")),
    "negative": lambda d: d["splits"].update(test_fraction=-1),
    "NUL": lambda d: d["images"]["shards"][0].update(path="a\0b"),
    "list": lambda d: d["genetics"].update(modalities=["snps"]),
    "outside": lambda d: d["genetics"].update(modalities={"../../x": d["genetics"]["modalities"]["snps"]}),
    "bool": lambda d: d["images"]["shards"][0].update(bytes=True),
    "huge": lambda d: d["images"]["shards"][0].update(samples=10**30),
}


@pytest.mark.parametrize("name", CHANGES)
def test_check_and_training_refuse_odd_manifests_in_one_line(copy, tmp_path, capsys, name):
    path = edited(copy, CHANGES[name])
    with pytest.raises(UserError, match=f"{path}: damaged manifest \\(field '"):
        content(copy, tmp_path)
    assert main(["check", str(copy)]) == 1
    assert f"damaged: {path}: damaged manifest" in capsys.readouterr().out


def test_check_and_training_refuse_a_deep_manifest(copy, tmp_path, capsys):
    (copy / "dataset.json").write_text('{"format": ' + "[" * 200_000)
    with pytest.raises(UserError, match=r"dataset.json: damaged manifest"):
        content(copy, tmp_path)
    assert main(["check", str(copy)]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["reports/fundus.json", "reports/snps.tsv.gz", "images/preprocess.json"])
@pytest.mark.parametrize("how", ["bit", "missing"])
def test_check_covers_reports_and_records(copy, capsys, name, how):
    assert main(["check", str(copy)]) == 0
    flip(copy / name, 3) if how == "bit" else (copy / name).unlink()
    assert main(["check", str(copy)]) == 1
    assert str(copy / name) in capsys.readouterr().out


EXTRA = [
    "images/shard-000009.tar",
    "images/x/y.jpg",
    "reports/old.json",
    "genetics.zarr/snps/rows/c/7",
    "genetics.zarr/x",
]


@pytest.mark.parametrize("name", EXTRA)
def test_check_names_unexpected_files(copy, capsys, name):
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes(b"x")
    assert main(["check", str(copy)]) == 1
    assert str(copy / name) in capsys.readouterr().out


def test_what_is_no_part_of_the_dataset_is_noted(copy, capsys):
    (copy / "README.txt").write_text("mine")
    shutil.rmtree(copy / "reports")  # private, and removed before the dataset is passed on
    assert main(["check", str(copy)]) == 0
    assert "not part of the dataset: README.txt" in capsys.readouterr().out


def test_a_damaged_report_is_not_taken_for_a_new_one(copy, capsys):
    past = (copy / "reports/fundus.json").stat().st_mtime - 3600
    flip(copy / "reports/fundus.json", 3)
    os.utime(copy / "reports/fundus.json", (past, past))
    with subjects.recording(copy):
        (copy / "reports/pgs.json").write_text("{}")
    assert main(["check", str(copy)]) == 1
    out = capsys.readouterr().out
    assert "fundus.json: SHA-256 differs" in out
    assert "1 problem" in out


def test_a_sample_outside_its_shard_is_refused(copy, tmp_path):
    table = subjects.open_dataset(DataConfig(path=str(copy), modalities=[], cache=str(tmp_path))).table
    from mrmfast.formats.sample_table import INDEX, write_table

    columns = {name: getattr(table, name) for name in ("shard", "offset", "size")}
    columns |= {name: np.array(getattr(table, name).tolist(), object) for name in ("key", "participant")}
    for name, value, reason in (
        ("offset", 10**12, "outside its shard"),
        ("shard", -1, "damaged"),
        ("shard", 99, "differs"),
    ):
        changed = columns[name].copy()
        changed[-1] = value
        digest = write_table(copy / INDEX, columns | {name: changed})
        with updating(copy) as manifest:
            manifest.index_sha256 = digest
        with pytest.raises(UserError, match=reason):
            content(copy, tmp_path)


def test_a_damaged_compiled_kernel_is_compiled_again(tmp_path, monkeypatch):
    source = tmp_path / "kernel.c"
    source.write_text("int answer(void) { return 42; }")
    monkeypatch.setenv("MRMFAST_CACHE", str(tmp_path / "cache"))

    def load():
        functions = {"answer": ([], native.INT)}
        return native.load(source, [], name="kernel", otherwise="", functions=functions)

    if load() is None:
        pytest.skip("no compiler")
    (compiled,) = (tmp_path / "cache/kernels").glob("*.so")
    right = compiled.read_bytes()
    damaged = bytearray(right)
    damaged[len(damaged) // 2] ^= 1
    compiled.unlink()  # a new file: the old one is mapped
    compiled.write_bytes(damaged)
    load()
    assert compiled.read_bytes() == right
