"""Targets of samples: joined by name, in every batch, exactly once, over resumption and changed ranks."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from mrmfast.batch import LabelSpec, Photometric, ViewSpec
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.images.augment import draw_matrices
from mrmfast.data.images.reference import decode_reference, masks_reference
from mrmfast.data.labels import LabelsConfig
from mrmfast.data.loader import Loader
from mrmfast.errors import UserError
from mrmfast.formats.image_shards import Sample, finalise_images, write_shard
from mrmfast.formats.manifest import SplitRule, claim_splits, read_manifest
from mrmfast.formats.sample_table import read_sample_table
from tests.helpers.common import reseal_shards
from tests.helpers.images import encode, smooth_image

CPU = torch.device("cpu")
BACKENDS = ("cpu", "dali")
VIEWS = (
    ViewSpec(crop=(0.3, 1.0), photometric=Photometric(0.4, 0.4, 0.4, 0.1, jitter=0.8, grey=0.2)),
    ViewSpec(24, crop=(0.2, 0.6), photometric=Photometric(blur=0.5)),
)


def config_for(path, labels, **settings):
    return DataConfig(**{"path": str(path), "image_size": 32, "threads": 1, "labels": labels, **settings})


def make(config, *, batch=6, micro=6, rank=0, world=1, views=VIEWS, **more):
    return Loader(
        open_dataset(config), config, seed=0, batch=batch, micro_batch=micro, rank=rank, world=world, device=CPU,
        views=views, **more,
    )  # fmt: skip


def write_table(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def of_key(dataset):
    return {key: number for number, key in enumerate(read_sample_table(str(dataset)).key.tolist())}


# Labels


@pytest.mark.parametrize("backend", BACKENDS)
def test_classes_go_with_the_keys(dataset, tmp_path, backend):
    keys = read_sample_table(str(dataset)).key.tolist()
    rows = [(key, (7 * number) % 5) for number, key in enumerate(keys)]
    path = write_table(tmp_path / "t.csv", "id_code,diagnosis", reversed(rows))  # by name, never by row
    labels = LabelsConfig("class", path, ["diagnosis"], identifier="id_code")
    loader = make(config_for(dataset, labels, backend=backend))
    assert loader.dataset.label_spec() == LabelSpec("class", ("0", "1", "2", "3", "4"))
    known, seen = dict(rows), []
    for batch in loader.batches(0, 24):
        assert batch.target.dtype == torch.int64 and batch.target.shape == (6,)
        assert batch.target.tolist() == [known[key] for key in batch.keys]
        seen += batch.keys
    assert sorted(seen) == sorted(keys)


def test_values_of_a_participant_go_to_all_their_images(dataset, tmp_path):
    table = read_sample_table(str(dataset))
    people = dict.fromkeys(table.participant.tolist())
    rows = {name: (number, "" if number % 3 else 20 + number / 4) for number, name in enumerate(people)}
    path = write_table(tmp_path / "t.csv", "participant,age,bmi", [(name, *row) for name, row in rows.items()])
    loader = make(config_for(dataset, LabelsConfig("values", path, ["bmi", "age"], by="participant")))
    numbers = of_key(dataset)
    for batch in loader.batches(0, 24):
        assert batch.target.dtype == torch.float32 and batch.target.shape == (6, 2)
        for key, (bmi, age) in zip(batch.keys, batch.target.tolist(), strict=True):
            expected_age, expected_bmi = rows[table.participant[numbers[key]]]
            assert age == expected_age
            assert np.isnan(bmi) if expected_bmi == "" else bmi == expected_bmi


def test_multi_hot_targets(dataset, tmp_path):
    keys = read_sample_table(str(dataset)).key.tolist()
    rows = [(key, number % 2, number % 3 == 0) for number, key in enumerate(keys)]
    path = write_table(tmp_path / "t.csv", "key,DR,MH", [(key, dr, int(mh)) for key, dr, mh in rows])
    batch = next(make(config_for(dataset, LabelsConfig("multi_hot", path, ["DR", "MH"]))).batches(0))
    known = {key: [float(dr), float(mh)] for key, dr, mh in rows}
    assert batch.target.tolist() == [known[key] for key in batch.keys]


def test_images_without_a_label_are_counted_or_dropped(dataset, tmp_path):
    keys = read_sample_table(str(dataset)).key.tolist()
    rows = [(key, "" if number == 5 else number % 2) for number, key in enumerate(keys[:20])]
    path = write_table(tmp_path / "t.csv", "key,grade", [*rows, ("unknown-1", 1), ("unknown-2", 0)])
    labels = LabelsConfig("class", path, ["grade"])
    line = r"t.csv: 5 of 24 images have no label; add them, or drop the images with data.labels.missing=drop$"
    with pytest.raises(UserError, match=line):
        open_dataset(config_for(dataset, labels))
    opened = open_dataset(config_for(dataset, replace(labels, missing="drop")))
    assert len(opened.selected) == 19 and opened.targets.rows_unused == 2
    loader = make(config_for(dataset, replace(labels, missing="drop")), batch=19, micro=19)
    batch = next(loader.batches(0))
    assert sorted(batch.keys) == sorted(key for key, grade in rows if grade != "")
    assert (batch.target >= 0).all()


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ({"by": "key"}, r"data.labels.kind is empty; choose class, multi_hot, values or mask$|data.labels.kind"),
        ({"path": "x.csv"}, r"data.labels.kind is empty; choose class, multi_hot, values or mask$"),
        ({"kind": "class"}, r"data.labels.path is empty; kind class needs a table of labels$"),
        ({"kind": "values", "path": "T", "columns": ["grade"], "classes": ["a"]}, r"classes goes with kind class"),
        ({"kind": "mask", "path": "T"}, r"kind mask takes masks from the shards$"),
        ({"kind": "mask"}, r"data.labels.columns: the dataset has no masks; it holds none$"),
        ({"kind": "mask", "columns": ["disc"]}, r"data.labels.columns: the dataset has no mask 'disc'; it holds none$"),
        (
            {"kind": "class", "path": "T", "columns": ["grade"], "by": "participant", "identifier": "key"},
            r"column 'key' names no participant of the dataset; are these the dataset's own keys or",
        ),
    ],
)
def test_settings_that_contradict_each_other(dataset, tmp_path, labels, line):
    path = write_table(tmp_path / "t.csv", "key,grade", [("a", 0), ("b", 1)])
    labels = {name: path if value == "T" else value for name, value in labels.items()}
    if labels == {"by": "key"}:
        assert open_dataset(config_for(dataset, LabelsConfig(**labels))).targets is None  # the default
        return
    with pytest.raises(UserError, match=line):
        open_dataset(config_for(dataset, LabelsConfig(**labels)))


# Masks


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """24 images of 48 pixels; disc and cup (two channels of a PNG of three) of all, lesions of most."""
    path = tmp_path_factory.mktemp("masked")
    claim_splits(path, SplitRule(0, 0.0))
    samples = []
    for number in range(24):
        generator = np.random.default_rng(number)
        vessels = generator.integers(0, 2, (48, 48, 3), dtype=np.uint8)
        lesions = {"lesions": encode(generator.integers(0, 2, (48, 48), dtype=np.uint8), ".png").tobytes()}
        masks = {"mask": encode(vessels, ".png").tobytes(), **(lesions if number % 4 else {})}
        jpeg = encode(smooth_image(number, 48)).tobytes()
        samples.append(Sample(f"{number:09d}", jpeg, str(100 + number // 2), {}, masks))
    parts = [write_shard(path, shard, samples[7 * shard : 7 * shard + 7]) for shard in range(4)]
    finalise_images(path, parts, image_size=48, schema={"jpg": "RGB"}, statistics={})
    return path


def test_masks_have_their_place_in_the_table(masked):
    table, manifest = read_sample_table(str(masked)), read_manifest(masked)
    assert [(mask.name, mask.channels) for mask in table.masks] == [("lesions", 1), ("mask", 3)]
    assert manifest.schema["mask.png"] == "mask, a channel per structure: 3"
    assert manifest.schema["lesions.mask.png"] == "mask, a channel per structure: 1"
    lesions = table.masks[0]
    assert (lesions.size > 0).tolist() == [number % 4 != 0 for number in range(24)]
    shard = (masked / manifest.shards[table.shard[9]].path).read_bytes()
    payload = shard[lesions.offset[9] : lesions.offset[9] + lesions.size[9]]
    expected = np.random.default_rng(9)
    expected.integers(0, 2, (48, 48, 3), dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(decoded, expected.integers(0, 2, (48, 48), dtype=np.uint8))
    index = (masked / manifest.shards[0].index).read_text().splitlines()
    assert index[0] == "v1.2 7"
    assert [part.split()[0] for part in index[2].split(" jpg ")[0:1]] == ["jpg"]
    assert " lesions.mask.png " in index[2] and " mask.png " in index[1] and "lesions" not in index[1]


def test_stock_tools_read_the_masks(masked):
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(masked / "images/shard-000000.tar"), shardshuffle=False))
    assert len(samples) == 7
    assert "mask.png" in samples[0] and "lesions.mask.png" not in samples[0] and "lesions.mask.png" in samples[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_come_with_the_geometry_of_view_0(masked, backend):
    labels = LabelsConfig("mask", columns=["lesions", "mask"])
    loader = make(config_for(masked, labels, backend=backend, modalities=[]))
    assert loader.dataset.label_spec() == LabelSpec("mask", ("lesions", "mask/0", "mask/1", "mask/2"))
    table, numbers, position = read_sample_table(str(masked)), of_key(masked), 0
    for batch in loader.batches(0, 24):
        assert batch.target.dtype == torch.uint8 and batch.target.shape == (6, 4, 32, 32)
        piece = loader.sampler.take(position, 6, set())
        position = batch.end
        matrices = [draw_matrices(piece, view, seed=0, number=n) for n, view in enumerate(loader.views)]
        for place, key in enumerate(batch.keys):
            row = numbers[key]
            shard = np.fromfile(masked / f"images/shard-{table.shard[row]:06d}.tar", np.uint8)
            pngs = [shard[m.offset[row] : m.offset[row] + m.size[row]] if m.size[row] else None for m in table.masks]
            expected = masks_reference(pngs, (1, 3), matrices[0][place], 32)
            differs = (batch.target[place].numpy() != expected).mean()
            assert differs <= (0 if backend == "cpu" else 0.003)
            jpeg = shard[table.offset[row] : table.offset[row] + table.size[row]]
            plain = decode_reference(jpeg, [matrix[place] for matrix in matrices], (32, 24))
            for view, expected in zip(batch.views, plain, strict=True):
                assert np.abs(view[place].permute(1, 2, 0).numpy().astype(int) - expected).mean() <= 3


def test_images_without_any_mask_are_dropped(masked):
    labels = LabelsConfig("mask", columns=["lesions"])
    with pytest.raises(UserError, match=r"data.labels: 6 of 24 images have no mask; add them, or drop"):
        open_dataset(config_for(masked, labels, modalities=[]))
    assert len(open_dataset(config_for(masked, replace(labels, missing="drop"), modalities=[])).selected) == 18


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_mask_sets_its_sample_aside(masked, tmp_path, backend):
    import shutil

    path = tmp_path / "ds"
    shutil.copytree(masked, path)
    mask = read_sample_table(str(path)).masks[1]
    shard = path / "images/shard-000001.tar"
    raw = bytearray(shard.read_bytes())
    raw[mask.offset[9] + 45 : mask.offset[9] + mask.size[9] - 20] = b"\x55" * (mask.size[9] - 65)
    shard.write_bytes(raw)
    reseal_shards(path)
    config = config_for(path, LabelsConfig("mask"), backend=backend, modalities=[], unreadable=0.1)
    loader = make(config)
    seen = [key for batch in loader.batches(0, 24) for key in batch.keys]
    assert set(loader.skipped_samples.values()) == {"000000009"}
    assert sorted(seen) == sorted(set(of_key(path)) - {"000000009"})
    with pytest.raises(UserError, match=r"sample 000000009 is not a readable JPEG with readable masks; 1 of 24"):
        list(make(replace(config, unreadable=0.0)).batches(0, 24))


def test_masks_that_cannot_be_written(tmp_path):
    def write(masks):
        jpeg = encode(smooth_image(0)).tobytes()
        parts = [write_shard(tmp_path, 0, [Sample(f"{n}", jpeg, "p", {}, mask) for n, mask in enumerate(masks)])]
        finalise_images(tmp_path, parts, image_size=64, schema={}, statistics={})

    grey, colours = encode(smooth_image(0)[..., 0], ".png").tobytes(), encode(smooth_image(0), ".png").tobytes()
    deep = encode(smooth_image(0)[..., 0].astype(np.uint16), ".png").tobytes()
    for bad in (b"", grey[:-4], encode(smooth_image(0)).tobytes(), deep):
        with pytest.raises(UserError, match=r"sample 0: mask 'disc' is not a whole PNG of 8 bits a channel"):
            write([{"disc": bad}])
    with pytest.raises(UserError, match=r"sample 1: mask 'disc' has 3 channels, those before it 1"):
        write([{"disc": grey}, {"disc": colours}])
    for name in ("Disc", "a.b", ""):
        with pytest.raises(UserError, match=r"a name has only small letters, digits, hyphens and underscores"):
            write([{name: grey}])


# Exactly once, resumed


def equal(one, other):
    assert (one.keys, one.epochs, one.end) == (other.keys, other.epochs, other.end)
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a.nan_to_num(-9), b.nan_to_num(-9))


def labelled(kind, masked, tmp_path):
    if kind == "mask":
        return LabelsConfig("mask")
    rows = [(key, number % 5, "" if number % 7 else number / 3) for key, number in of_key(masked).items()]
    path = write_table(tmp_path / "t.csv", "key,grade,age", rows)
    return LabelsConfig(kind, path, ["grade"] if kind == "class" else ["grade", "age"])


@pytest.mark.parametrize("kind", ["class", "values", "mask"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_resumed_on_other_ranks_every_batch_is_the_same(masked, tmp_path, kind, backend):
    """Views, colours, labels and masks belong to (epoch, sample): 1 rank, then from the middle 3 and 2 ranks."""
    config = config_for(masked, labelled(kind, masked, tmp_path), backend=backend, modalities=[])
    unbroken = list(make(config).batches(0, 72))
    for epoch in range(3):
        keys = [key for b in unbroken for key, of in zip(b.keys, b.epochs, strict=True) if of == epoch]
        assert sorted(keys) == sorted(of_key(masked))
    for before, after in zip(unbroken[5:], make(config).batches(unbroken[4].end, 72), strict=True):
        equal(before, after)
    for world in (2, 3):
        shares = [list(make(config, micro=6, rank=rank, world=world).batches(30, 72)) for rank in range(world)]
        for before, *parts in zip(unbroken[5:], *shares, strict=True):
            assert before.keys == tuple(itertools.chain(*(part.keys for part in parts)))
            for whole, *pieces in zip(before.tensors(), *(part.tensors() for part in parts), strict=True):
                assert torch.equal(whole.nan_to_num(-9), torch.cat(pieces).nan_to_num(-9))


def test_seeds_and_epochs_draw_other_colours(masked):
    config = config_for(masked, LabelsConfig(), modalities=[])
    batches = list(make(config).batches(0, 48))
    colours = [dict(zip(b.keys, b.photometric[0].tolist(), strict=True)) for b in batches]
    first, second = ({k: v for c in colours[4 * e : 4 * e + 4] for k, v in c.items()} for e in range(2))
    assert sum(first[key] == second[key] for key in first) <= 3  # a fifth of them keep their colours


def test_the_digest_of_targets_knows_every_label(masked, tmp_path):
    def digest(rows):
        path = write_table(tmp_path / "t.csv", "key,grade", rows)
        return open_dataset(config_for(masked, LabelsConfig("class", path, ["grade"]), modalities=[])).targets.digest()

    rows = [(key, number % 2) for key, number in of_key(masked).items()]
    first = digest(rows)
    assert first == digest(rows[::-1])
    assert first != digest([*rows[:-1], (rows[-1][0], 0)])
