"""``python -m preprocess check``: a flipped byte anywhere, missing and foreign files, joins."""

import shutil

import numpy as np
import pytest

from preprocess.__main__ import main
from tests.helpers.common import write_dataset


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("check") / "ds")


def files(dataset):
    return sorted(p for p in dataset.rglob("*") if p.is_file() and p.name != ".dataset.lock")


def test_a_sound_dataset_passes(sound, capsys):
    assert main(["check", str(sound)]) == 0
    out = capsys.readouterr().out
    assert "24 images of 12 participants" in out
    assert "snps: 12 participants x 37 features, for 12 of the 12 with images" in out


def test_a_flipped_byte_is_found_in_every_file(sound, tmp_path, capsys):
    copy = shutil.copytree(sound, tmp_path / "ds")
    generator = np.random.default_rng(0)
    assert len(files(copy)) > 60
    for path in files(copy):
        whole = path.read_bytes()
        # Ends of a file are where a check that reads only part of it would miss.
        for place in {0, len(whole) - 1, *generator.integers(0, len(whole), 3).tolist()}:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(generator.integers(8))
            path.write_bytes(flipped)
            assert main(["check", str(copy)]) != 0, f"{path.relative_to(copy)} byte {place}"
            captured = capsys.readouterr()
            assert path.name in captured.out + captured.err
        path.write_bytes(whole)
    assert main(["check", str(copy)]) == 0


@pytest.mark.parametrize("pattern", ["images/*.tar", "images/*.idx", "genetics.zarr/pgs/rows/c/*/*", "**/zarr.json"])
def test_a_missing_file_is_named(sound, tmp_path, capsys, pattern):
    copy = shutil.copytree(sound, tmp_path / "ds")
    victim = next(iter(sorted(copy.glob(pattern))))
    victim.unlink()
    assert main(["check", str(copy)]) == 1
    assert f"{victim}: is missing" in capsys.readouterr().out


def test_a_foreign_file_is_named(sound, tmp_path, capsys):
    copy = shutil.copytree(sound, tmp_path / "ds")
    (copy / "genetics.zarr" / "snps" / "rows" / "c" / "9").write_bytes(b"")
    (copy / "genetics.zarr" / "old").mkdir()
    assert main(["check", str(copy)]) == 1
    out = capsys.readouterr().out
    assert "c/9: does not belong there" in out
    assert "old: is not in dataset.json" in out


def test_a_changed_manifest_is_told_once(sound, tmp_path, capsys):
    path = shutil.copytree(sound, tmp_path / "ds") / "dataset.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert main(["check", str(path.parent)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"damaged: {path}: differs from its own SHA-256")
    assert out.count("run its preprocessor again") == 1


def test_no_dataset_is_a_clear_error(tmp_path, capsys):
    assert main(["check", str(tmp_path)]) == 2
    assert "dataset.json: does not exist" in capsys.readouterr().err
