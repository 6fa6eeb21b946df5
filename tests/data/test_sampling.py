"""What an epoch holds: any member of a set of rows, weighted copies, one image a participant, and files of weights."""

from dataclasses import replace

import numpy as np
import pytest

from mrmfast.data.dataset import DataConfig, make_sampler, open_dataset
from mrmfast.data.sampling.epoch import OnePerParticipant, Rows, Weighted
from mrmfast.data.sampling.weights import read_weights
from mrmfast.errors import UserError
from mrmfast.formats.sample_table import SampleTable


@pytest.mark.parametrize(("total", "share"), [(1, 1.0), (64, 1.0), (65, 0.5), (5_000, 0.8), (5_000, 0.01), (128, 0.0)])
def test_rows_are_found_by_number(total, share):
    generator = np.random.default_rng(total)
    chosen = generator.random(total) < share
    ends = np.unique(np.append(generator.integers(0, total, 9), total))
    rows, listed = Rows(ends, chosen), np.flatnonzero(chosen)
    assert rows.length == len(listed)
    assert rows.rows(np.arange(len(listed))).tolist() == rows.all().tolist() == listed.tolist()
    assert rows.per_shard.tolist() == [part.sum() for part in np.split(chosen, ends[:-1])]


def weighted(weights, seed=0):
    return Weighted(seed, Rows(np.array([len(weights)]), np.ones(len(weights), bool)), np.array(weights))


def copies(sampling, epoch):
    entries = sampling.epoch(epoch)
    assert entries.per_shard.sum() == sampling.length
    rows = entries.rows(np.arange(sampling.length))
    assert (np.diff(rows) >= 0).all()
    return np.bincount(rows, minlength=sampling.length)


@pytest.mark.parametrize("weight", [1, 0.1, 1 / 3, 1e-300, 1e308])
@pytest.mark.parametrize("n", [1, 7, 100_003])
def test_equal_weights_give_every_image_once(weight, n):
    assert all((copies(weighted(np.full(n, weight)), epoch) == 1).all() for epoch in range(3))


def test_copies_are_the_weight_rounded_and_the_weight_on_average():
    weights = np.random.default_rng(0).gamma(0.5, size=1_000)
    weights[::10] = 0
    share = weights / weights.mean()
    drawn = np.array([copies(weighted(weights, seed=3), epoch) for epoch in range(400)])
    assert (drawn >= np.floor(share - 1e-6)).all()
    assert (drawn <= np.ceil(share + 1e-6)).all()
    assert (drawn[:, ::10] == 0).all()
    # A copy more or less is a coin of variance f (1 - f); 5 standard errors, for a thousand images.
    part = share % 1
    assert (np.abs(drawn.mean(0) - share) < 5 * np.sqrt(part * (1 - part) / 400) + 0.01).all()
    assert all((copies(weighted(weights * 1e-9, seed=3), epoch) == drawn[epoch]).all() for epoch in range(3))


def test_extreme_weights():
    lone = copies(weighted([0, 0, 1e-300, 0]), 0)
    assert lone.tolist() == [0, 0, 4, 0]
    many = np.full(10_001, 1e-12)
    many[5_000] = 1
    assert copies(weighted(many), 0)[5_000] == 10_001


def test_each_participant_once_by_images_that_change():
    participant = np.random.default_rng(1).integers(0, 300, 1_000)
    chosen = np.random.default_rng(2).random(1_000) < 0.7
    ends = np.array([10, 500, 1_000])
    sampling = OnePerParticipant(4, Rows(ends, chosen), participant[chosen])
    epochs = [sampling.epoch(number).rows(np.arange(sampling.length)) for number in range(600)]
    for rows in epochs:
        assert sorted(participant[rows]) == np.unique(participant[chosen]).tolist()
    counts = np.bincount(np.concatenate(epochs), minlength=1_000)
    assert (counts[~chosen] == 0).all()
    expected = 600 / np.bincount(participant[chosen])[participant[chosen]]
    assert (np.abs(counts[chosen] - expected) < 5 * np.sqrt(expected)).all()
    # Numbers given to participants, and who else takes part, change nobody's image.
    fewer = chosen & (participant % 2 == 0)
    again = OnePerParticipant(4, Rows(ends, fewer), 1_000 - participant[fewer])
    kept = epochs[9][participant[epochs[9]] % 2 == 0]
    assert again.epoch(9).rows(np.arange(again.length)).tolist() == kept.tolist()


TABLE = SampleTable(
    *(np.zeros(4, np.int64),) * 3, np.array(["000", "001", "002", "003"]), np.array(["a", "a", "b", "c"])
)


def write(folder, text):
    (folder / "w.csv").write_text(text)
    return folder / "w.csv"


def test_weights_by_key_or_participant(tmp_path):
    selected = np.array([True, True, True, False])
    by_key = write(tmp_path, "key,weight\n001,2\n000,0.5\n\n002,0\nnot-here,9\n")
    assert read_weights(by_key, TABLE, selected).tolist() == [0.5, 2, 0, 0]
    by_participant = write(tmp_path, "\ufeffparticipant, weight\nb,3\na,1e-2\n")
    assert read_weights(by_participant, TABLE, selected).tolist() == [0.01, 0.01, 3, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header must be key,weight or participant,weight"),
        ("id,weight\n000,1\n", "line 1: the header"),
        ("key,weight\n000,1\n001,heavy\n", "line 3: not a key and a finite weight"),
        ("key,weight\n000,-1\n", "line 2: not a key"),
        ("key,weight\n000,nan\n", "line 2: not a key"),
        ("participant,weight\na\n", "line 2: not a participant"),
        ("participant,weight\na,1\na,2\n", "line 3: the participant appears twice"),
        ("participant,weight\na,1\n", "2 of 4 selected images have no weight"),
        ("participant,weight\na,0\nb,0\nc,0\n", "all selected images have weight 0"),
    ],
)
def test_files_that_are_not_weights(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_weights(write(tmp_path, text), TABLE, np.ones(4, bool))
    assert "\n" not in str(caught.value)


def test_a_config_chooses_the_sampling(dataset, tmp_path):
    config = DataConfig(path=str(dataset), modalities=[])
    opened = open_dataset(config)
    people = opened.table.participant
    n = len(make_sampler(opened, config, 0))
    assert n == len(people)

    each = make_sampler(opened, replace(config, sampling="participants", shuffle_window=1), 0)
    rows = each.take(0, len(each)).sample
    assert sorted(people[rows].tolist()) == np.unique(people).tolist()

    file = tmp_path / "w.csv"
    file.write_text("key,weight\n" + "".join(f"{key},{int(row < 3)}\n" for row, key in enumerate(opened.table.key)))
    heavy = make_sampler(opened, replace(config, weights=str(file)), 0).take(0, n).sample
    assert np.bincount(heavy).tolist() == [n // 3] * 3

    with pytest.raises(UserError, match=r"data\.weights goes with data\.sampling=images"):
        make_sampler(opened, replace(config, sampling="participants", weights=str(file)), 0)
    with pytest.raises(UserError, match=r"data\.weights=nowhere\.csv: cannot be read"):
        make_sampler(opened, replace(config, weights="nowhere.csv"), 0)
