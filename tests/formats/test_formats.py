"""Dataset format: round trips, stock readers, damage."""

import json

import numpy as np
import pytest
import torch
import webdataset
import zarr

from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.genetics.store import FeatureTable, GenomeStore, pack_rows, write_modality
from mrmfast.data.loader import Loader
from mrmfast.errors import UserError
from mrmfast.formats.checksums import file_sha256
from mrmfast.formats.manifest import Manifest, SplitRule, claim_splits, read_manifest, updating
from mrmfast.formats.pseudonyms import Pseudonyms
from mrmfast.formats.sample_table import read_sample_table
from mrmfast.ops.genome_unpack import unpack_genome
from mrmfast.storage.source import DatasetSource
from preprocess.__main__ import main as preprocess
from tests.helpers.common import write_dataset


def test_stock_webdataset_reads_the_tars(dataset):
    manifest = read_manifest(dataset)
    seen = list(webdataset.WebDataset([str(dataset / s.path) for s in manifest.shards], shardshuffle=False))
    table = read_sample_table(str(dataset))
    assert [sample["__key__"] for sample in seen] == table.key.tolist()
    assert [json.loads(sample["json"])["participant"] for sample in seen] == table.participant.tolist()
    for sample, shard, offset, size in zip(seen, table.shard, table.offset, table.size, strict=True):
        assert (dataset / manifest.shards[shard].path).read_bytes()[offset : offset + size] == sample["jpg"]


def test_stock_dali_reads_tar_and_index(dataset):
    from nvidia.dali import fn, pipeline_def

    manifest = read_manifest(dataset)

    @pipeline_def(batch_size=manifest.samples, num_threads=1, device_id=None)
    def stock():
        return tuple(
            fn.readers.webdataset(
                paths=[str(dataset / s.path) for s in manifest.shards],
                index_paths=[str(dataset / s.index) for s in manifest.shards],
                ext=["jpg", "json"],
                name="reader",
            )
        )

    pipeline = stock()
    pipeline.build()
    _, labels = pipeline.run()
    assert pipeline.epoch_size("reader") == manifest.samples
    participants = [json.loads(bytes(labels.at(i)))["participant"] for i in range(manifest.samples)]
    assert participants == read_sample_table(str(dataset)).participant.tolist()


def test_stock_zarr_reads_the_genetics(dataset):
    group = zarr.open_group(str(dataset / "genetics.zarr"), mode="r")
    assert group["snps"].metadata.zarr_format == 3
    names = [codec.to_dict()["name"] for codec in group["snps/rows"].metadata.codecs[0].codecs]
    assert set(names) <= {"bytes", "zstd", "crc32c"}
    packed = group["snps/rows"][:]
    codes = (packed[:, :, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    counts = codes.reshape(len(packed), -1)[:, : group["snps"].attrs["n_features"]]
    assert set(np.unique(counts)) <= {0, 1, 2, 3}
    assert group["snps/features/name"][3] == "f3"


def test_same_samples_give_the_same_bytes(tmp_path):
    first, second = write_dataset(tmp_path / "a"), write_dataset(tmp_path / "b")
    for path in sorted(p for p in first.rglob("*") if p.is_file() and p.name != ".dataset.lock"):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path.name


def test_manifest_checksums_and_no_ids(dataset):
    text = (dataset / "dataset.json").read_text()
    for shard in Manifest.from_json(text, "x").shards:
        assert shard.sha256 == file_sha256(dataset / shard.path)
        assert shard.bytes == (dataset / shard.path).stat().st_size
    for participant in set(read_sample_table(str(dataset)).participant.tolist()):
        assert participant not in text


@pytest.mark.parametrize("kind", ["genotype", "binary", "float"])
@pytest.mark.parametrize("n_features", [1, 7, 8, 33])
def test_pack_and_unpack_are_inverse(kind, n_features):
    import torch

    generator = np.random.default_rng(n_features)
    if kind == "float":
        values = generator.standard_normal((6, n_features)).astype(np.float32)
        values[2, 0] = np.nan
        missing = np.isnan(values)
    else:
        values = generator.integers(-1 if kind == "genotype" else 0, 3 if kind == "genotype" else 2, (6, n_features))
        missing = values < 0
    fill = generator.standard_normal(n_features).astype(np.float32)
    packed = torch.from_numpy(pack_rows(kind, values))
    present = torch.tensor([[True]] * 5 + [[False]])
    got, observed = unpack_genome((packed,), present, (("m", kind, n_features),), torch.from_numpy(fill))
    missing[5] = True
    assert np.array_equal(observed.numpy(), ~missing)
    assert np.array_equal(got.numpy(), np.where(missing, fill, values).astype(np.float32))


def test_values_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"0\.\.2"):
        pack_rows("genotype", np.array([[3]]))
    with pytest.raises(UserError, match=r"0\.\.1"):
        pack_rows("binary", np.array([[-1]]))


def test_store_joins_by_id_and_marks_absence(dataset):
    store = GenomeStore.open(str(dataset))
    assert [m.name for m in store.modalities] == ["snps", "pgs", "burden"]
    ids = np.array(["nobody", *store.modalities[0].participants[[4, 0]]], dtype=object)
    rows = store.locate(ids)
    assert rows[:, 0].tolist() == [-1, 4, 0]
    packed = store.gather(rows)
    assert (packed[0][0] == 0xFF).all()
    assert np.isnan(packed[1][0]).all()
    assert np.array_equal(packed[0][1], store.modalities[0].rows[4])


def test_rows_written_in_blocks_span_shards(tmp_path, monkeypatch):
    from mrmfast.formats import genetics

    monkeypatch.setattr(genetics, "ROWS_PER_CHUNK", 4)
    monkeypatch.setattr(genetics, "CHUNKS_PER_SHARD", 2)
    values = np.arange(27 * 3, dtype=np.float32).reshape(27, 3)
    table = FeatureTable.build("abc", ["g"] * 3)
    blocks = [values[:1], values[1:14], values[14:15], values[15:]]
    write_modality(tmp_path, "pgs", "float", map(str, range(27)), table, blocks)
    assert np.array_equal(GenomeStore.open(str(tmp_path)).modalities[0].rows, values)


def test_writer_refuses_repeats_and_existing(tmp_path):
    table = FeatureTable.build("a", ["g"])
    with pytest.raises(UserError, match="repeat"):
        write_modality(tmp_path, "pgs", "float", ["1", "1"], table, [np.zeros((2, 1))])
    write_modality(tmp_path, "pgs", "float", ["1", "2"], table, [np.zeros((2, 1))])
    with pytest.raises(UserError, match="exists already"):
        write_modality(tmp_path, "pgs", "float", ["1", "2"], table, [np.zeros((2, 1))])


def test_a_failed_write_leaves_nothing(tmp_path):
    def blocks():
        yield np.zeros((1, 1))
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        write_modality(tmp_path, "pgs", "float", ["1", "2"], FeatureTable.build("a", ["g"]), blocks())
    assert not list(tmp_path.glob("**/pgs*"))
    assert not list(tmp_path.glob(".pgs*"))


def test_split_is_a_pure_function_of_the_id():
    rule = SplitRule(3, 0.25)
    ids = [str(i) for i in range(4000)]
    held_out = sum(rule.of(one) == "test" for one in ids) / len(ids)
    assert abs(held_out - 0.25) < 0.03
    assert [rule.of(one) for one in ids] == [SplitRule(3, 0.25).of(one) for one in ids]
    assert {SplitRule(0, 0.0).of(one) for one in ids} == {"train"}


def test_split_rule_cannot_change_under_a_dataset(tmp_path):
    claim_splits(tmp_path, SplitRule(0, 0.2))
    claim_splits(tmp_path, SplitRule(0, 0.2))
    with pytest.raises(UserError, match="begun with split seed 0"):
        claim_splits(tmp_path, SplitRule(1, 0.2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged manifest"),
        ("{}", "not an mrmfast dataset"),
        ('{"format": "mrmfast-dataset", "version": 99}', "newer"),
        ('{"format": "mrmfast-dataset", "version": 1}', "damaged manifest"),
    ],
)
def test_bad_manifests(text, message):
    with pytest.raises(UserError, match=message):
        Manifest.from_json(text, "dataset.json")


@pytest.mark.parametrize("change", [{"path": "../x.tar"}, {"path": "/x.tar"}, {"sha256": "../../x"}])
def test_a_manifest_cannot_lead_out_of_the_dataset(dataset, change):
    document = json.loads((dataset / "dataset.json").read_text())
    document["images"]["shards"][0].update(change)
    with pytest.raises(UserError, match="damaged manifest"):
        Manifest.from_json(json.dumps(document), "dataset.json")


def test_a_changed_manifest_is_refused(tmp_path):
    path = write_dataset(tmp_path, genetics=False) / "dataset.json"
    whole = json.loads(path.read_text())
    changed, unsealed = whole | {"pseudonyms": "another"}, {key: whole[key] for key in whole if key != "sha256"}
    for document in (changed, unsealed):
        path.write_text(json.dumps(document))
        for read in (DatasetSource(str(path.parent)).manifest, lambda: read_manifest(path.parent)):
            with pytest.raises(UserError, match=r"dataset.json: differs from its own SHA-256 .*; copy or upload"):
                read()


def test_a_failed_update_keeps_the_manifest(tmp_path):
    claim_splits(tmp_path, SplitRule())
    before = (tmp_path / "dataset.json").read_bytes()

    def fail():
        with updating(tmp_path) as manifest:
            manifest.image_size = 5
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert (tmp_path / "dataset.json").read_bytes() == before


def test_missing_and_short_shards_are_named(tmp_path):
    path = write_dataset(tmp_path, genetics=False)
    manifest = read_manifest(path)
    source = DatasetSource(str(path))
    shard = path / manifest.shards[0].path
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"shard-000000\.tar: has .* bytes"):
        source.local(manifest.shards[0])
    (path / manifest.shards[1].path).unlink()
    with pytest.raises(UserError, match="shard is missing"):
        source.local(manifest.shards[1])


@pytest.fixture
def stock_tars(tmp_path):
    """Tars as stock WebDataset writes them, with keys that are ids and members in its own order."""
    import cv2

    generator = np.random.default_rng(0)
    with webdataset.ShardWriter(f"{tmp_path}/stock-%04d.tar", maxcount=4, verbose=0) as sink:
        for number in range(10):
            image = cv2.resize(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8), (48, 48))
            jpeg = cv2.imencode(".jpg", image)[1].tobytes()
            metadata = {"participant": f"p{number // 2}", "eye": number % 2}
            sink.write({"__key__": f"p{number // 2}_{number % 2}", "jpg": jpeg, "json": metadata, "cls": number})
    return tmp_path


def test_tars_of_stock_webdataset_become_a_dataset(stock_tars):
    assert preprocess(["index", str(stock_tars), "--test-fraction", "0"]) == 0
    assert preprocess(["check", str(stock_tars)]) == 0
    loader_config = DataConfig(path=str(stock_tars), image_size=48, rotation=0, flip=0, split="all", modalities=[])
    dataset = open_dataset(loader_config)
    stock = webdataset.WebDataset(sorted(map(str, stock_tars.glob("*.tar"))), shardshuffle=False, empty_check=False)
    expected = {f"{n:09d}": sample["jpg"] for n, sample in enumerate(stock)}
    for row, shard in enumerate(dataset.table.shard):
        content = (stock_tars / dataset.manifest.shards[shard].path).read_bytes()
        offset, size = dataset.table.offset[row], dataset.table.size[row]
        assert content[offset : offset + size] == expected[dataset.table.key[row]]
    assert dataset.table.participant.tolist() == [f"p{number // 2}" for number in range(10)]
    loader = Loader(dataset, loader_config, seed=0, batch=5, micro_batch=5, rank=0, world=1, device=torch.device("cpu"))
    batches = loader.batches(0)
    keys = [key for _ in range(2) for key in next(batches).keys]
    batches.close()
    assert sorted(keys) == sorted(expected)


def test_participants_of_stock_tars_from_their_keys(stock_tars):
    assert preprocess(["index", str(stock_tars), "--participant-pattern", r"(?P<participant>p\d+)_"]) == 0
    assert read_sample_table(str(stock_tars)).participant.tolist() == [f"p{number // 2}" for number in range(10)]


def test_stock_tars_join_under_pseudonyms(stock_tars, tmp_path_factory, capsys):
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text("0123456789abcdef0123456789abcdef")
    assert preprocess(["index", str(stock_tars), "--pseudonymise", str(key)]) == 0
    assert "the tars still contain the original IDs" in capsys.readouterr().err
    expected = Pseudonyms.read(key).of(f"p{number // 2}" for number in range(10))
    assert read_sample_table(str(stock_tars)).participant.tolist() == expected.tolist()
    assert preprocess(["index", str(stock_tars)]) == 2
    assert "with another key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--participant-field", "patient"], "no field 'patient'"),
        (["--tars", "*.tgz"], "no file matches"),
        (["--participant-pattern", "x(?P<participant>.)"], "does not match --participant-pattern"),
    ],
)
def test_mistakes_in_indexing_are_named(stock_tars, options, complaint, capsys):
    assert preprocess(["index", str(stock_tars), *options]) == 2
    assert complaint in capsys.readouterr().err
    assert not (stock_tars / "images").exists()


def test_a_truncated_stock_tar_is_named(stock_tars, capsys):
    path = stock_tars / "stock-0001.tar"
    path.write_bytes(path.read_bytes()[:1100])
    assert preprocess(["index", str(stock_tars)]) == 2
    assert "stock-0001.tar" in capsys.readouterr().err
