"""Decoding, augmentation, joining, order."""

import gc
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import psutil
import pytest
import torch

from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.images.augment import warp_matrices
from mrmfast.data.loader import Loader
from mrmfast.errors import UserError
from mrmfast.formats.checksums import file_sha256
from mrmfast.formats.sample_table import read_sample_table
from tests.helpers.common import reseal_shards, write_dataset
from tests.helpers.images import decode

CPU = torch.device("cpu")


def make(config, *, batch=6, micro=6, rank=0, world=1, seed=0, **more):
    return Loader(
        open_dataset(config), config, seed=seed, batch=batch, micro_batch=micro, rank=rank, world=world, device=CPU,
        **more,
    )  # fmt: skip


def config_for(dataset, **settings):
    return DataConfig(path=str(dataset), image_size=32, threads=1, **settings)


def stored_image(dataset, table, row):
    from mrmfast.formats.manifest import read_manifest

    shard = (dataset / read_manifest(dataset).shards[table.shard[row]].path).read_bytes()
    raw = np.frombuffer(shard, np.uint8)[table.offset[row] : table.offset[row] + table.size[row]]
    return cv2.imdecode(raw, cv2.IMREAD_COLOR)[:, :, ::-1]


def test_images_and_genetics_belong_to_the_keys(dataset):
    config = config_for(dataset, rotation=0.0, flip=0.0)
    loader = make(config)
    table = read_sample_table(str(dataset))
    row_of_key = {key: row for row, key in enumerate(table.key.tolist())}
    store = loader.dataset.store
    for batch in itertools.islice(loader.batches(0), 4):
        for place, key in enumerate(batch.keys):
            row = row_of_key[key]
            image = batch.views[0][place].permute(1, 2, 0).numpy().astype(int)
            assert np.abs(image - stored_image(dataset, table, row)).max() <= 3  # two decoders' rounding
            for part, modality in zip(batch.packed, store.modalities, strict=True):
                (there,) = np.flatnonzero(modality.participants == table.participant[row])
                assert np.array_equal(part[place].numpy(), modality.rows[there])
        assert batch.present.all()


def test_an_epoch_holds_every_image_once_and_ranks_share_batches(dataset):
    config = config_for(dataset)
    whole = [b.keys for b in itertools.islice(make(config).batches(0), 4)]
    assert sorted(key for keys in whole for key in keys) == sorted(read_sample_table(str(dataset)).key.tolist())
    shares = [
        [b.keys for b in itertools.islice(make(config, micro=1, rank=rank, world=3).batches(0), 8)] for rank in range(3)
    ]
    for step in range(4):
        joined = [key for rank in range(3) for keys in shares[rank][2 * step : 2 * step + 2] for key in keys]
        assert joined == list(whole[step])


def test_resumed_batches_are_bit_identical(dataset):
    unbroken = list(itertools.islice(make(config_for(dataset)).batches(0), 9))
    resumed = list(itertools.islice(make(config_for(dataset)).batches(5 * 6), 4))
    for before, after in zip(unbroken[5:], resumed, strict=True):
        assert before.keys == after.keys
        assert before.epochs == after.epochs
        assert torch.equal(before.views[0], after.views[0])
        for a, b in zip(before.packed, after.packed, strict=True):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_epochs_and_seeds_augment_differently(dataset):
    def images(seed, epoch):
        batches = itertools.islice(make(config_for(dataset), seed=seed).batches(24 * epoch), 4)
        return {k: b.views[0][i] for b in batches for i, k in enumerate(b.keys)}

    first, second, other = images(0, 0), images(0, 1), images(1, 0)
    assert sum(torch.equal(first[k], second[k]) for k in first) == 0
    assert sum(torch.equal(first[k], other[k]) for k in first) == 0


@pytest.mark.parametrize("backend", ["cpu", "dali"])
@pytest.mark.parametrize(("angle", "flip"), [(0, False), (0, True), (17, False), (-20, True)])
def test_the_warp_equals_opencvs(angle, flip, backend):
    generator = np.random.default_rng(0)
    image = cv2.resize(generator.integers(0, 255, (6, 6, 3), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
    jpeg = np.frombuffer(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 98])[1], np.uint8)
    matrices = warp_matrices(np.array([angle]), np.array([flip]), 64)
    decoded, bad = decode(backend, [jpeg], matrices=matrices, threads=1)
    assert not bad.any()
    ours = decoded[0].astype(int)
    # The same thing said in OpenCV's words: rotate about the middle, then mirror.
    turned = cv2.warpAffine(
        cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[:, :, ::-1], cv2.getRotationMatrix2D((31.5, 31.5), angle, 1.0), (64, 64)
    )
    theirs = (turned[:, ::-1] if flip else turned).astype(int)
    inner = np.hypot(*(np.indices((64, 64)) - 31.5)) < 30  # their borders blend with black, ours clamp
    assert np.abs(ours - theirs)[inner].mean() <= 1.0


def test_smaller_inputs_are_resized(dataset):
    batch = next(make(replace(config_for(dataset), image_size=16)).batches(0))
    assert batch.views[0].shape == (6, 3, 16, 16)


def test_preview_is_unaugmented_and_fixed(dataset):
    loader = make(config_for(dataset))
    first, again = loader.preview(4), loader.preview(4)
    assert torch.equal(first.views[0], again.views[0])
    table = read_sample_table(str(dataset))
    row = table.key.tolist().index(first.keys[0])
    assert np.abs(first.views[0][0].permute(1, 2, 0).numpy().astype(int) - stored_image(dataset, table, row)).max() <= 3


def test_images_only(dataset):
    batch = next(make(config_for(dataset, modalities=[])).batches(0))
    assert batch.packed == ()
    assert batch.present.shape == (6, 0)


def test_modalities_can_be_chosen(dataset):
    opened = open_dataset(config_for(dataset, modalities=["burden", "snps"]))
    assert [modality.name for modality in opened.genome_spec().modalities] == ["snps", "burden"]
    with pytest.raises(UserError, match="no modality 'rna'; it holds snps, pgs, burden"):
        open_dataset(config_for(dataset, modalities=["rna"]))


def test_participants_without_genetics(tmp_path):
    path = write_dataset(tmp_path, participants=6)
    ids = read_sample_table(str(path)).participant.tolist()
    write_dataset(path, genetics=False, ids=[*dict.fromkeys(ids), "2000001"])
    with pytest.raises(UserError, match=r"2 of 14 images .* without genetics; drop them with data.unmatched=drop"):
        open_dataset(config_for(path))
    assert len(open_dataset(config_for(path, unmatched="drop")).selected) == 12
    kept = open_dataset(config_for(path, unmatched="keep"))
    assert (kept.genome_rows[-2:] == -1).all()
    write_dataset(path, genetics=False, ids=["2000001", "2000002"])
    with pytest.raises(UserError, match="4 of 4 images"):
        open_dataset(config_for(path, unmatched="keep"))


def test_split_selects_participants(tmp_path):
    path = write_dataset(tmp_path, participants=40, test_fraction=0.3)
    parts = {s: set(open_dataset(config_for(path, split=s)).selected.tolist()) for s in ("train", "test", "all")}
    assert parts["train"] | parts["test"] == parts["all"]
    assert not parts["train"] & parts["test"]
    table = read_sample_table(str(path))
    people = [set(table.participant[sorted(parts[s])].tolist()) for s in ("train", "test")]
    assert not people[0] & people[1]


def test_errors_of_missing_datasets(tmp_path):
    with pytest.raises(UserError, match="path is empty"):
        open_dataset(DataConfig())
    with pytest.raises(UserError, match=r"no dataset\.json there"):
        open_dataset(config_for(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no genetics; run python -m preprocess"):
        open_dataset(config_for(write_dataset(tmp_path / "d", genetics=False), modalities=["snps"]))


def damage(path, *rows, kind="garbage"):
    """Damage images of a dataset in place."""
    table = read_sample_table(str(path))
    for row in rows:
        shard = path / f"images/shard-{table.shard[row]:06d}.tar"
        raw = bytearray(shard.read_bytes())
        start, end = table.offset[row], table.offset[row] + table.size[row]
        if kind == "truncated":
            raw[end - 2 : end] = b"\0\0"
        else:
            raw[start + 2 : end - 2] = b"\x55" * (end - start - 4)
        shard.write_bytes(raw)
    reseal_shards(path)


@pytest.mark.parametrize("kind", ["truncated", "garbage"])
@pytest.mark.parametrize("backend", ["cpu", "dali"])
def test_too_many_unreadable_images_stop_the_run(tmp_path, kind, backend):
    path = write_dataset(tmp_path)
    damage(path, 2, kind=kind)
    with pytest.raises(UserError, match=r"sample 000000002 is not a readable JPEG; 1 of 24 .* data.unreadable=0.01"):
        list(itertools.islice(make(config_for(path, backend=backend)).batches(0), 4))


@pytest.mark.parametrize("backend", ["cpu", "dali"])
def test_unreadable_images_are_skipped_and_the_stream_fills_their_places(tmp_path, backend):
    path = write_dataset(tmp_path)
    config = config_for(path, unreadable=0.2, backend=backend)
    damage(path, 2, 9, 17)
    lost = {f"{row:09d}" for row in (2, 9, 17)}
    loader = make(config, batch=5, micro=5)
    batches = list(itertools.islice(loader.batches(0), 20))
    assert all(len(batch.keys) == 5 and len(batch.views[0]) == 5 for batch in batches)
    assert set(loader.skipped_samples.values()) == lost
    assert loader.meters.counts["skipped_samples"] == 3
    for epoch in range(4):  # every other image once an epoch
        keys = [k for b in batches for k, of in zip(b.keys, b.epochs, strict=True) if of == epoch]
        assert sorted(keys) == sorted(set(read_sample_table(str(path)).key.tolist()) - lost)
    # The order is the undamaged dataset's without the skipped images, wherever a run resumes.
    again = make(config, batch=5, micro=5)
    for before, after in zip(batches[7:], itertools.islice(again.batches(batches[6].end), 6), strict=False):
        assert before.keys == after.keys
        assert torch.equal(before.views[0], after.views[0])


def test_ranks_agree_on_skipped_samples(tmp_path):
    """Three ranks in three threads: one finds the damage, all leave it out, and the global order stays one."""
    path = write_dataset(tmp_path)
    damage(path, 2, 9, 17)
    config = config_for(path, unreadable=0.2)
    alone = [b.keys for b in itertools.islice(make(config, batch=6, micro=6).batches(0), 12)]
    barrier, found = threading.Barrier(3), [frozenset()] * 3
    shares = [[] for _ in range(3)]

    def work(rank):
        def agree(mine):
            found[rank] = mine
            barrier.wait(30)
            everyone = frozenset().union(*found)
            barrier.wait(30)
            return everyone

        loader = make(config, batch=6, micro=2, rank=rank, world=3, agree=agree)
        batches = loader.batches(0)
        shares[rank] = [next(batches).keys for _ in range(12)]
        batches.close()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    assert [tuple(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == alone


def test_a_stream_with_an_end(dataset):
    batches = list(make(config_for(dataset), batch=7, micro=4).batches(0, 24))
    assert [len(batch.keys) for batch in batches] == [4, 3, 4, 3, 4, 3, 3]
    assert len({key for batch in batches for key in batch.keys}) == 24


def test_leaving_early_leaves_nothing_behind(dataset):
    def once():
        loader = make(config_for(dataset))
        batches = loader.batches(0)
        next(batches)
        batches.close()
        loader.dataset.source.close()

    once()
    threads, files = threading.active_count(), psutil.Process().num_fds()
    for _ in range(5):
        once()
    gc.collect()
    assert threading.active_count() <= threads
    assert psutil.Process().num_fds() <= files


def test_stages_are_counted(dataset):
    loader = make(config_for(dataset))
    list(loader.batches(0, 24))
    stages = loader.meters.stages
    assert all(stages[name].items == 24 and stages[name].seconds > 0 for name in ("read", "decode", "augment", "join"))
    assert stages["read"].bytes == read_sample_table(str(dataset)).size.sum()


def test_remote_bytes_go_through_a_checked_cache(dataset, upload, monkeypatch):
    url = upload(dataset, "loader")
    config = config_for(dataset)
    local = list(itertools.islice(make(config).batches(0), 4))
    remote = list(itertools.islice(make(replace(config, path=url)).batches(0), 4))
    for a, b in zip(local, remote, strict=True):
        assert a.keys == b.keys
        assert torch.equal(a.views[0], b.views[0])
        assert all(
            torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a.packed, b.packed, strict=True)
        )
    opened = open_dataset(replace(config, path=url))
    cached = [opened.source.local(shard) for shard in opened.manifest.shards]
    assert [file_sha256(path) for path in cached] == [shard.sha256 for shard in opened.manifest.shards]


def test_a_wrong_checksum_in_the_bucket_is_an_error(tmp_path, upload, monkeypatch):
    monkeypatch.setenv("MRMFAST_CACHE", str(tmp_path / "cache"))  # the shared one may hold these bytes, whole
    path = write_dataset(tmp_path / "ds", genetics=False)
    shard = path / "images/shard-000000.tar"
    raw = bytearray(shard.read_bytes())
    raw[600] ^= 1
    shard.write_bytes(raw)
    url = upload(path, "damaged")
    with pytest.raises(UserError, match=r"shard-000000\.tar: SHA-256 differs from the manifest, 3 times"):
        list(itertools.islice(make(config_for(url)).batches(0), 4))


def test_bucket_errors(upload, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"s3://no-such-bucket/ds/dataset.json: not there"):
        open_dataset(DataConfig(path="s3://no-such-bucket/ds"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))  # nor a credentials file
    with pytest.raises(UserError, match="no credentials for this bucket; set AWS_ACCESS_KEY_ID"):
        open_dataset(DataConfig(path="s3://some-bucket/ds"))
