"""Checkpoints and logs of a run: damage is named, the latest intact checkpoint is resumed, a full disk is one line."""

import json
import os
import random
import shutil
import subprocess
from dataclasses import asdict

import pytest
import torch

from benchmarks.robustness import subjects
from benchmarks.robustness.damage import KINDS, damage, siblings
from mrmfast.atomic import partial_path
from mrmfast.errors import SharedError, UserError
from mrmfast.formats.checksums import seal
from mrmfast.training import build, checkpoint
from mrmfast.training.checkpoint import TrainState
from mrmfast.training.engine import World
from mrmfast.training.export_results import read_lines
from mrmfast.training.run_log import JSONLines
from tests.helpers.common import read_jsonl


def write_checkpoint(folder, step, samples=None):
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({"weights": torch.full((500,), float(step)), "name": name}, path / name)
    state = TrainState(step=step, samples=samples or 8 * step, dataset="d", precision="fp32", sealed=True)
    (path / "state.json").write_text(json.dumps(asdict(state)))
    seal(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20):
        write_checkpoint(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def test_an_intact_checkpoint_is_taken_without_a_word(folder):
    assert checkpoint.choose(folder) == (folder / "step-00000020", [])


def test_every_kind_of_damage_is_told_and_the_earlier_checkpoint_is_taken(folder, tmp_path):
    generator, cases = random.Random(0), 0
    newest, earlier = (path.relative_to(folder) for path in reversed(checkpoint.checkpoints(folder)))
    for path, sibling in siblings(subjects.files_of(folder / newest)):
        for kind in set(KINDS) - {"extra"}:
            copy = subjects.copy(folder, tmp_path / "copy")
            target, other = (copy / file.relative_to(folder) for file in (path, sibling))
            if not damage(kind, target, other, generator):
                continue
            chosen, (damaged, resuming) = checkpoint.choose(copy)
            assert chosen == copy / earlier, (path, kind)
            # A bit in checksums.json may change the name of a file in it.
            assert "checksums.json" in (target.name, other.name) or target.name in damaged or other.name in damaged
            assert f"renamed to {copy / newest}.damaged" in damaged
            assert str(copy / earlier) in resuming
            assert checkpoint.choose(copy) == (copy / earlier, []), "told once"
            cases += 1
    assert cases >= 15


def edit_state(path, **changes):
    state = path / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | changes))


@pytest.mark.parametrize("changes", [{"samples": 164}, {"samples": 152}, {"step": 5}, {"dataset": "e"}])
def test_other_numbers_in_state_json_are_damage(folder, changes):
    path = folder / "step-00000020"
    edit_state(path, **changes)
    with pytest.raises(UserError, match=r"state.json: .*; remove this checkpoint and resume again"):
        checkpoint.load(None, path, "d", "fp32")
    assert checkpoint.choose(folder)[0] == folder / "step-00000010"


def test_a_checkpoint_in_the_folder_of_another_step_is_damage(folder):
    one, other = (folder / f"step-{step:08d}" for step in (10, 20))
    shutil.rmtree(other)
    one.rename(other)
    with pytest.raises(
        UserError, match=r"state.json: damaged \(step 10, 80 samples, in a folder called step-00000020\)"
    ):
        checkpoint.choose(folder)


STATES = [
    b"",
    b"null",
    b"[]",
    b'{"step": "20"}',
    b'{"step": 20, "samples": -8}',
    b'{"step": 20, "samples": 8}',
    b'{"step": true, "samples": 8}',
    b'{"step": 20, "samples": 160, "seconds": "x"}',
    b'{"step": 20, "samples": 160, "world": 0}',
    b'{"step": 20, "samples": 160, "zero_stage": 7}',
    b'{"step": 20, "samples": 160, "precision": "bp32"}',
    b'{"step": 1' + b"0" * 5000 + b"}",
    b"[" * 100_000,
    b'{"step": 20, "samples": 160, "dataset": "\xff"}',
    b'{"step": 20, "samples": 160, "other": 1}',
]


@pytest.mark.parametrize("text", STATES)
def test_odd_states_are_one_line(folder, text):
    path = folder / "step-00000020"
    (path / "state.json").write_bytes(text)
    seal(path)  # by who wrote it
    with pytest.raises(UserError, match=r"state.json: .*damaged.*; remove this checkpoint and resume again") as caught:
        checkpoint.read_state(path)
    assert "\n" not in str(caught.value)
    assert checkpoint.choose(folder)[0] == folder / "step-00000010"


def test_no_intact_checkpoint_ends_the_run_with_the_file_and_the_remedy(folder):
    for path in checkpoint.checkpoints(folder):
        damage("bit", path / "mp_rank_00_model_states.pt", None, random.Random(1))
    world = World(0, 1, torch.device("cpu"), False)
    match = (
        r"step-00000020/mp_rank_00_model_states.pt: SHA-256 differs .*; no earlier checkpoint is intact: remove this"
    )
    with pytest.raises(SharedError, match=match):
        build._choose_checkpoint(folder.parent, world)
    assert len(checkpoint.checkpoints(folder)) == 2, "nothing is renamed"


def test_rank_0_prints_the_warnings(folder, capsys):
    (folder / "step-00000020/mp_rank_00_model_states.pt").unlink()
    world = World(0, 1, torch.device("cpu"), False)
    assert build._choose_checkpoint(folder.parent, world) == folder / "step-00000010"
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("mrmfast: warning: ") for line in lines] == [True, True]
    assert "mp_rank_00_model_states.pt: is missing" in lines[0]


def test_a_checkpoint_of_an_earlier_version_is_taken_with_a_warning(folder):
    path = folder / "step-00000020"
    (path / "checksums.json").unlink()
    state = json.loads((path / "state.json").read_text())
    del state["sealed"]
    (path / "state.json").write_text(json.dumps(state))
    chosen, (warning,) = checkpoint.choose(folder)
    assert chosen == path
    assert "its tensors are not verified" in warning


def test_digests_that_are_gone_are_damage(folder):
    (folder / "step-00000020/checksums.json").unlink()
    chosen, warnings = checkpoint.choose(folder)
    assert chosen == folder / "step-00000010"
    assert "checksums.json: is missing" in warnings[0]


def test_further_files_count_only_if_they_hold_tensors(folder):
    path = folder / "step-00000020"
    (path / ".DS_Store").write_text("x")
    assert checkpoint.choose(folder) == (path, [])
    shutil.copyfile(path / "mp_rank_00_model_states.pt", path / "mp_rank_01_model_states.pt")
    assert checkpoint.choose(folder)[0] == folder / "step-00000010"


class Engine:
    """Writes one file as DeepSpeed does, or fails."""

    def __init__(self, error=None, size=100):
        self.error, self.size = error, size

    def save_checkpoint(self, folder, tag, save_latest):
        os.makedirs(f"{folder}/{tag}", exist_ok=True)
        torch.save({"x": torch.zeros(self.size)}, f"{folder}/{tag}/mp_rank_00_model_states.pt")
        if self.error is not None:
            raise self.error


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)


def test_a_saved_checkpoint_is_sealed(folder, alone):
    checkpoint.save(Engine(), folder, TrainState(step=30, samples=240), keep=2)
    assert checkpoint.choose(folder) == (folder / "step-00000030", [])
    assert checkpoint.read_state(folder / "step-00000030").sealed
    assert not (folder / "step-00000010").exists()


def test_a_damaged_checkpoint_is_not_counted_as_kept(folder, alone):
    (folder / "step-00000020/mp_rank_00_model_states.pt").unlink()
    checkpoint.choose(folder)
    checkpoint.save(Engine(), folder, TrainState(step=15, samples=120), keep=2)
    assert [path.name for path in checkpoint.checkpoints(folder)] == ["step-00000010", "step-00000015"]


FULL = [
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 7285376 vs 7285264"),
    RuntimeError("basic_ios::clear: iostream error"),
    RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"),
    OSError(28, "No space left on device"),
    OSError(122, "Disk quota exceeded"),
]


@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_is_one_line_and_earlier_checkpoints_stay(folder, alone, error):
    with pytest.raises(UserError, match="no space left for a checkpoint; free space, then resume"):
        checkpoint.save(Engine(error), folder, TrainState(step=30, samples=240), keep=1)
    assert not list(folder.glob(".step-*")), "the space of the failed save is free again"
    assert checkpoint.choose(folder) == (folder / "step-00000020", [])


def test_another_error_of_a_save_is_not_called_a_full_disk(folder, alone):
    with pytest.raises(RuntimeError, match="of ours"):
        checkpoint.save(Engine(RuntimeError("a defect of ours")), folder, TrainState(step=30, samples=240), keep=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_full(tmp_path, alone):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("this sandbox cannot mount a tmpfs")
    try:
        with pytest.raises(UserError, match="no space left for a checkpoint"):
            checkpoint.save(Engine(size=10**6), tmp_path, TrainState(step=30, samples=240), keep=1)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


DAMAGED = [b'{"step": 2, "lo', b"\xff\xfe", b"{}", b"[1]", b'{"step": "2"}', b"", b'{"step": ' + b"[" * 100_000]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_of_a_log_is_removed_and_told(tmp_path, capsys, line):
    path = tmp_path / "metrics.jsonl"
    text = b'{"step": 1, "loss": 1.0}\n' + line + b'\n{"step": 3, "loss": 0.5}\n'
    path.write_bytes(text)
    assert [entry["step"] for entry in read_lines(path)] == [1, 3], "figures are drawn of what is there"
    log = JSONLines(path, 3)
    log.write([{"step": 4}])
    log.close()
    assert [entry["step"] for entry in read_jsonl(path)] == [1, 3, 4]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "1 damaged lines are removed, the first is line 2" in warning
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == text


def test_leftovers_of_killed_processes_are_swept_at_the_start(tmp_path):
    names = [".encoder.safetensors.4711.partial", ".config.yaml.partial", "figures/.loss.png.12.partial"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / "checkpoints/.step-00000020.partial").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000010").mkdir()
    build.sweep_leftovers(tmp_path)
    assert not [path for path in tmp_path.rglob(".*")]
    assert (tmp_path / "checkpoints/step-00000010").exists()


def test_without_locks_only_old_partial_files_are_swept(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("mrmfast.atomic.fcntl.flock", no_locks)
    new, old = (partial_path(tmp_path / name) for name in ("new", "old"))
    for path in (new, old):
        path.write_text("half")
    os.utime(old, (1e9, 1e9))
    build.sweep_partials(tmp_path)
    assert new.exists()
    assert not old.exists()
