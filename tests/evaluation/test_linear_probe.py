"""The linear probe: against an independent formula, without leakage, and with errors in one line."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mrmfast.batch import LabelSpec
from mrmfast.data.dataset import DataConfig
from mrmfast.data.labels import LabelsConfig
from mrmfast.errors import UserError
from mrmfast.evaluation import load_evaluation
from mrmfast.evaluation.embed import Embedding, embed
from mrmfast.evaluation.linear_probe import LinearProbeConfig, probe
from mrmfast.models.export import ExportRecipe, export_encoder, load_encoder
from mrmfast.models.image_encoder import ImageEncoder
from tests.helpers.common import write_dataset


def embedding(kind="values", names=("x",), participants=60, noise=0.1, seed=0):
    """Two images a participant; the label is a linear function of three features."""
    generator = np.random.default_rng(seed)
    person = np.repeat(np.arange(participants), 2)
    features = generator.standard_normal((participants, 3))[person]
    features += 0.1 * generator.standard_normal(features.shape)
    clean = features @ np.array([1.0, -2.0, 0.5]) + noise * generator.standard_normal(len(person))
    targets = {
        "values": clean[:, None].astype(np.float32),
        "multi_hot": (clean > 0)[:, None].astype(np.float32),
        "class": np.digitize(clean, np.linspace(-1, 1, len(names) - 1)).astype(np.int64) if len(names) > 1 else None,
    }[kind]
    return Embedding(features.astype(np.float32), targets, LabelSpec(kind, names), person, person < participants * 0.7)


def test_values_are_found_again_and_noise_is_not():
    assert probe(embedding()).values["x"] > 0.99
    wrong = embedding()
    shuffled = np.random.default_rng(1).permutation(60)[wrong.participant]
    first = wrong.targets[::2][shuffled]
    dealt = Embedding(wrong.features_PD, first, wrong.labels, wrong.participant, wrong.training)
    assert probe(dealt).values["x"] < 0.1


@pytest.mark.parametrize("kind", ["values", "multi_hot"])
def test_labels_of_held_out_participants_change_nothing_but_the_score(kind, monkeypatch):
    """The fitted probe is the same when the held-out labels are others."""
    fitted = []
    from sklearn.model_selection import GridSearchCV

    original = GridSearchCV.fit
    monkeypatch.setattr(
        GridSearchCV, "fit", lambda self, x, y: fitted.append((x.sum(), y.sum(), len(y))) or original(self, x, y)
    )
    made = embedding(kind)
    probe(made)
    made.targets[~made.training] = made.targets[~made.training][::-1].copy()
    probe(made)
    assert fitted[0] == fitted[1] and fitted[0][2] == made.training.sum()


def test_classes_are_scored_one_against_the_rest():
    made = embedding("class", names=("0", "1", "2"))
    scores = probe(made)
    assert list(scores.values) == ["mean", "0", "1", "2"] and scores.metric == "ROC-AUC"
    assert scores.values["mean"] == pytest.approx(np.mean([scores.values[name] for name in "012"]))
    held_out = made.features_PD[~made.training] @ np.array([1.0, -2.0, 0.5])
    oracle = roc_auc_score(made.targets[~made.training] == 2, held_out)
    assert scores.values["2"] == pytest.approx(oracle, abs=0.03)
    assert scores.counts["held-out participants"] == 18


def test_missing_values_are_dropped_by_column():
    made = embedding()
    made.targets[::7] = np.nan
    assert probe(made).values["x"] > 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.training.fill(True), "0 held out"),
        (lambda made: made.training.__setitem__(slice(4, None), False), "5 training participants"),
        (lambda made: made.targets[~made.training].fill(0), None),
    ],
)
def test_a_split_that_cannot_be_probed_is_one_line(change, message):
    made = embedding("multi_hot")
    change(made)
    if message is None:
        made.targets[~made.training] = 0
        message = "held-out images are all of one class"
    with pytest.raises(UserError, match=message):
        probe(made)


def test_few_labels_are_drawn_by_the_seed():
    made = embedding(noise=2.0)
    few = [probe(made, images=20, seed=seed).values["mean"] for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


def test_config_and_registry():
    assert load_evaluation("linear_probe").Config is LinearProbeConfig
    with pytest.raises(UserError, match="mask"):
        LinearProbeConfig(labels=LabelsConfig(kind="mask"))


def test_features_are_those_of_the_encoder_without_augmentation(tmp_path):
    """Rows follow the labels by key, whatever the order of the loader; the class token on request."""
    folder = write_dataset(tmp_path / "ds", participants=8, genetics=False, test_fraction=0.5)
    torch.manual_seed(0)
    encoder = ImageEncoder("vit_tiny_patch16_224", 32, 1)
    path = tmp_path / "encoder.safetensors"
    export_encoder(path, encoder.state_dict(), ExportRecipe(encoder.arch, encoder.arguments))
    table = tmp_path / "labels.csv"
    table.write_text("key,x\n" + "".join(f"{number:09d},{number}\n" for number in range(15)))
    labels = LabelsConfig("values", str(table), ["x"])
    data = DataConfig(path=str(folder), image_size=32, threads=1, split="train")
    made = embed(path, data, labels)
    assert sorted(made.targets[:, 0].tolist()) == list(range(15))  # one image has no label
    model = load_encoder(path).eval()
    from mrmfast.data.dataset import open_dataset
    from mrmfast.data.loader import Loader

    plain = DataConfig(path=str(folder), image_size=32, threads=1, split="all", rotation=0, flip=0, pixels="float32")
    opened = open_dataset(plain)
    loader = Loader(
        opened, plain, seed=3, batch=5, micro_batch=5, rank=0, world=1, device=torch.device("cpu")
    )  # fmt: skip
    expected = {}
    with torch.no_grad():
        for batch in loader.batches(0, end=len(loader.sampler)):
            tokens = model.forward_features(batch.views[0])
            expected.update(zip(batch.keys, zip(tokens[:, 1:].mean(1), tokens[:, 0], strict=True), strict=True))
    opened.source.close()
    classes = embed(path, data, labels, pool="class")
    for pool, made_now in ((0, made), (1, classes)):
        for row, number in zip(made_now.features_PD, made_now.targets[:, 0], strict=True):
            assert np.allclose(row, expected[f"{int(number):09d}"][pool], atol=1e-5)
    # Both eyes of a participant are on one side.
    sides = {}
    for person, training in zip(made.participant, made.training, strict=True):
        assert sides.setdefault(person, training) == training
