"""Hostile and mistaken values of a config: each is refused in one line, or legal; texts are read as they stand there.

The complete sweep trains with what is legal: ``python -m benchmarks.robustness.config_values``.
"""

import random
import time

import pytest

from benchmarks.robustness import hostile_values
from benchmarks.robustness.config_values import LEAK, SHOWN, read_mutations
from mrmfast import config
from mrmfast.errors import UserError
from mrmfast.training.settings import TrainConfig
from tests.helpers.common import ROOT


def complaint(*overrides, path=None):
    """The message of a config that is refused."""
    with pytest.raises(UserError) as caught:
        config.load(TrainConfig, path, list(overrides))
    message = str(caught.value)
    assert "\n" not in message and len(message) <= SHOWN and not LEAK.search(message), message
    return message


def test_any_value_of_any_key_is_refused_in_one_line_or_legal():
    values = list(hostile_values.values())
    assert len(values) > 1000
    legal = 0
    for key, value in random.Random(1).sample(values, 200):
        *first, key = key.split(" ")
        try:
            config.load(TrainConfig, ROOT / "configs/demo.yaml" if not first else None, [*first, f"{key}={value}"])
            legal += 1
        except UserError as error:
            message = str(error)
            assert "\n" not in message and len(message) <= SHOWN and not LEAK.search(message), message
    assert 5 < legal < 150


def test_mutated_files_are_refused_in_one_line_or_legal():
    outcomes = read_mutations(7, 60)
    assert outcomes["message"] + outcomes["legal"] == 60
    assert outcomes["message"] > 10


@pytest.mark.parametrize("name", sorted(hostile_values.documents()))
def test_a_file_that_is_no_config_is_refused_at_once(name, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(hostile_values.documents()[name])
    start = time.monotonic()
    complaint(path=path)
    assert time.monotonic() - start < 5


# Beside what the page names: a name in scientific notation, an octal number, a word for truth, a number to base 60.
WORDS = ["20241127", "2024-11-27", "2026-13-45", "0x_", "1e5", "007", "off", "12:30", "1_000"]


@pytest.mark.parametrize("text", [*WORDS, "a #b", "a: b", "*x", "!x"])
def test_a_text_is_read_as_it_stands_on_the_command_line(text):
    assert config.load(TrainConfig, None, [f"run.name={text}"]).run.name == text
    assert config.load(TrainConfig, None, [f"data.weights={text}"]).data.weights == text


@pytest.mark.parametrize("text", WORDS)
def test_a_text_is_read_as_it_stands_in_the_file(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"run:\n  name: {text}\ndata:\n  modalities: [{text}]\n")
    loaded = config.load(TrainConfig, path, [])
    assert (loaded.run.name, loaded.data.modalities) == (text, [text])
    path.write_text(config.dump(loaded))
    assert config.load(TrainConfig, path, []) == loaded


def test_a_path_keeps_its_number_sign_and_quotes_and_null_still_count():
    path = "/data/study #2/ds"
    assert config.load(TrainConfig, None, [f"data.path={path}"]).data.path == path
    assert config.load(TrainConfig, None, [f"data.path='{path}'"]).data.path == path
    assert config.load(TrainConfig, None, ["data.weights=null", "data.cache=~"]).data.weights is None


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("a\0b", "U+0000"),
        ("a\nb", "U+000A"),
        ("a\u202eb", "U+202E"),
        ("\ud800", "U+D800"),
        ("a\u2066b", "U+2066"),
        ("\x1b[2J", "U+001B"),
    ],
)
@pytest.mark.parametrize("key", ["run.name", "run.dir", "data.path", "data.cache"])
def test_characters_that_break_a_name_are_named(key, value, code):
    assert code in complaint(f"{key}={value}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.shuffle_window=100000000000000000000000", "must be at most 1048576"),
        ("optimiser.lr=1.0e+300", "must be at most 1000"),
        ("batch_size=100000000", "must be at most 1048576"),
        ("model.genome_layers=100000", "must be at most 256"),
        ("objective.reconstruct.image_decoder.depth=100000", "must be at most 256"),
        ("objective.reconstruct.genome_decoder.width=1000000000", "must be at most 16384"),
        ("steps=100000000000000000000000000", "must be at most 1000000000"),
        ("data.unreadable=.nan", "must be a finite number"),
        ("steps=yes", "valid integer"),
        ("data.rotation=1:30", "valid number"),
        ("seed=0x_", "does not fit its type"),
        ('seed=!!int "x"', "does not fit its type"),
        ("seed=!!timestamp x", "does not fit its type"),
        ("data.anonymous=!!bool x", "does not fit its type"),
        ("seed=" + "9" * 5000, "does not fit its type"),
        ("engine.micro_batch=x", "or input should be 'auto'"),
        ("data.fetch={requests: 0}", "data.fetch.requests=0: must be at least 1"),
        ("steps={a: 1}", "a mapping of 1 keys"),
        ("engine.rank_timeout=0", "engine.rank_timeout=0: must be at least 1"),
    ],
)
def test_a_value_out_of_range_names_the_key_and_the_range(override, message):
    assert message in complaint(override)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:SECRET@127.0.0.1:9/ds",
        "http://user:SEC/RET@127.0.0.1:9/ds",
        "http://user:two SECRET@127.0.0.1:9/ds",
        "https://SECRET@host/ds",
        "https://host/ds?X-Amz-Signature=SECRET:1",
    ],
)
def test_credentials_of_a_url_are_neither_shown_nor_stored(url):
    loaded = config.load(TrainConfig, None, [f"data.path={url}"])
    assert loaded.data.path == url
    stored = config.dump(loaded)
    assert "RET" not in stored and "/ds" in stored
    assert "RET" not in complaint(f"data.split={url}") + complaint(f"seed={url}") + complaint(f"x{url}")
    assert "RET" not in str(UserError(f"{url}/dataset.json: not there; upload it"))
