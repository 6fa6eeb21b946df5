"""The main job as a process: launcher, ranks, ZeRO, resume, object store, errors."""

import os
import signal
import time

import numpy as np
import pytest
import timm
from safetensors.torch import load_file

from mrmfast.formats.checksums import seal
from mrmfast.formats.sample_table import read_sample_table
from mrmfast.training.checkpoint import TrainState, checkpoints
from mrmfast.training.run_log import JSONLines, read_lines
from mrmfast.training.step import step_seed
from tests.helpers.common import ROOT, launch, read_jsonl, reseal_shards, start, tiny_run, train, write_dataset

pytestmark = pytest.mark.slow
# For runs that are killed between two steps: those of the tiniest model would be over before anybody looks.
SLOWER = {"model.depth": 12}


def losses(folder):
    return np.array([entry["loss"] for entry in read_jsonl(folder / "metrics.jsonl")])


def logged_keys(folder):
    return [(line["step"], line["epoch"], line["rank"], line["keys"]) for line in read_jsonl(folder / "samples.jsonl")]


def succeed(*arguments, door=train, **options):
    done = door(*arguments, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def unbroken(dataset, tmp_path_factory):
    """20 steps in one go on one rank."""
    folder = tmp_path_factory.mktemp("unbroken")
    succeed(*tiny_run(folder, dataset, steps=20, **SLOWER, **{"run.checkpoint_every": 5}))
    return folder / "run"


def test_a_run_leaves_what_the_readme_promises(unbroken):
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "samples.jsonl",
        "encoder.safetensors",
        "encoder.json",
        "figures/loss.png",
        "figures/reconstructions.png",
    ):
        assert (unbroken / name).stat().st_size > 0, name
    assert list((unbroken / "tensorboard").glob("events.*"))
    assert [path.name for path in checkpoints(unbroken / "checkpoints")] == ["step-00000015", "step-00000020"]
    entry = read_jsonl(unbroken / "metrics.jsonl")[-1]
    parts = {"loss", "loss/image", "loss/genome", "loss/self", "loss/cross"}
    assert parts | {"step", "epoch", "lr", "images_per_s", "data_wait", "grad_norm"} <= set(entry)
    assert entry["loss"] == pytest.approx(sum(entry[part] for part in parts - {"loss"}), rel=1e-5)
    stock = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    stock.load_state_dict(load_file(unbroken / "encoder.safetensors"), strict=True)


def test_training_learns_and_logs_every_sample_once(unbroken):
    values = losses(unbroken)
    assert values[-3:].mean() < 0.8 * values[:3].mean()
    keys = [key for _, epoch, _, step_keys in logged_keys(unbroken) if epoch < 6 for key in step_keys]
    assert len(keys) == 6 * 24
    assert set(np.unique(keys, return_counts=True)[1]) == {6}


def test_nothing_of_a_run_names_a_participant(unbroken, dataset):
    ids = {one.encode() for one in read_sample_table(str(dataset)).participant.tolist()}
    for path in unbroken.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(one in content for one in ids), path.name


def test_sigkill_and_resume_equal_an_unbroken_run(dataset, unbroken, tmp_path):
    arguments = tiny_run(tmp_path, dataset, steps=20, **SLOWER, **{"run.checkpoint_every": 5})
    ranks = start(*arguments)
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:  # past the checkpoint of step 10, so that work after it is lost and redone
        if metrics.exists() and len(read_lines(metrics)) >= 11:
            break
        time.sleep(0.02)
    ranks.kill()
    reached = len(read_lines(metrics))
    assert 11 <= reached < 20, f"killed at step {reached}"
    done = succeed(*arguments, "--resume", "auto")
    assert "steps 11 to 20" in done.stderr or "steps 16 to 20" in done.stderr
    assert np.array_equal(losses(tmp_path / "run"), losses(unbroken))
    assert logged_keys(tmp_path / "run") == logged_keys(unbroken)
    ours, theirs = (load_file(folder / "encoder.safetensors") for folder in (tmp_path / "run", unbroken))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_an_object_store_gives_the_same_losses(dataset, unbroken, tmp_path, s3):
    environment, upload = s3
    arguments = tiny_run(tmp_path, upload(dataset, "training"), steps=6)
    succeed(*arguments, environment={**environment, "MRMFAST_CACHE": str(tmp_path / "cache")})
    # The schedule is that of a run of 6, so compare with the same from disk.
    succeed(*tiny_run(tmp_path, dataset, name="disk", steps=6))
    assert np.array_equal(losses(tmp_path / "run"), losses(tmp_path / "disk"))
    assert logged_keys(tmp_path / "run") == logged_keys(tmp_path / "disk")
    assert logged_keys(tmp_path / "disk") == logged_keys(unbroken)[: len(logged_keys(tmp_path / "disk"))]


def test_two_ranks_agree_at_every_zero_stage(dataset, tmp_path):
    # Rising rates, as in the first 20 steps of any real run: at the peak rate, a mask that flips on a rounding error
    # of one stage's arithmetic is amplified past the bound within a few steps on some machines.
    settings = {"steps": 20, "model.alpha_dropout": 0.05, "optimiser.warmup": 1.0}
    curves = {}
    for stage in range(4):
        arguments = tiny_run(tmp_path, dataset, name=f"z{stage}", **settings, **{"engine.zero_stage": stage})
        succeed(*arguments, door=launch, ranks=2)
        curves[stage] = losses(tmp_path / f"z{stage}")
        assert len(curves[stage]) == 20
        assert (tmp_path / f"z{stage}/encoder.safetensors").exists()
    for stage in range(1, 4):
        assert np.abs(curves[stage] - curves[0]).max() <= 1e-3, stage
        print(f"ZeRO {stage} against 0, largest difference in 20 steps: {np.abs(curves[stage] - curves[0]).max():.1e}")
    # Both ranks' halves of every batch were logged, and no key twice in an epoch.
    lines = logged_keys(tmp_path / "z3")
    assert {rank for _, _, rank, _ in lines} == {0, 1}
    for epoch in range(6):
        keys = [key for _, of, _, keys in lines if of == epoch for key in keys]
        assert len(keys) == len(set(keys)) == 24


def test_unreadable_images_within_the_limit_are_skipped_by_all_ranks(tmp_path):
    torn = write_dataset(tmp_path / "torn")
    table = read_sample_table(str(torn))
    shard = torn / "images/shard-000000.tar"
    raw = bytearray(shard.read_bytes())
    raw[table.offset[3] + 2 : table.offset[3] + table.size[3] - 2] = bytes(int(table.size[3]) - 4)
    shard.write_bytes(raw)
    reseal_shards(torn)
    done = succeed(*tiny_run(tmp_path, torn, steps=7, **{"data.unreadable": 0.05}), ranks=2)
    assert "sample 000000003 cannot be read and is skipped, 1 so far" in done.stderr
    assert "epoch 0: 23 of 24 images, the others skipped" in done.stderr
    assert read_jsonl(tmp_path / "run/metrics.jsonl")[-1]["skipped_samples"] == 1
    for epoch in (0, 1):
        keys = [key for _, of, _, keys in logged_keys(tmp_path / "run") if of == epoch for key in keys]
        assert sorted(keys) == sorted(set(table.key.tolist()) - {"000000003"})


def test_every_sample_once_over_changing_ranks_and_kills(dataset, tmp_path):
    """3 ranks, SIGKILL, 2 ranks, SIGKILL, 1 rank to the end: the order of one unbroken run on one rank.

    Of 24 images, a batch of 18: most batches hold the end of one epoch and the start of the next.
    """
    settings = {**SLOWER, "batch_size": 18, "steps": 14, "run.checkpoint_every": 2, "engine.zero_stage": 0}
    succeed(*tiny_run(tmp_path, dataset, name="whole", **settings))
    arguments = tiny_run(tmp_path, dataset, name="broken", **settings)
    for number, until in ((3, 4), (2, 9)):
        ranks = start(*arguments, "--resume", "auto", ranks=number)
        metrics = tmp_path / "broken/metrics.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (metrics.exists() and len(read_lines(metrics)) >= until):
            time.sleep(0.02)
        ranks.kill()
        assert until <= len(read_lines(metrics)) < 14
    succeed(*arguments, "--resume", "auto")

    def order(name):
        return [(epoch, key) for _, epoch, _, keys in logged_keys(tmp_path / name) for key in keys]

    assert order("broken") == order("whole")
    assert {rank for _, _, rank, _ in logged_keys(tmp_path / "broken")} == {0, 1, 2}
    everyone = sorted(read_sample_table(str(dataset)).key.tolist())
    for number in range(14 * 18 // 24):  # no key missing, none twice
        assert sorted(key for epoch, key in order("broken") if epoch == number) == everyone


def test_recomputed_activations_train_alike_under_zero_3(dataset, tmp_path):
    settings = {"steps": 4, "engine.zero_stage": 3, "model.alpha_dropout": 0.05}
    for name, enable in (("kept", "false"), ("recomputed", "true")):
        arguments = tiny_run(tmp_path, dataset, name=name, **settings, **{"engine.activation_checkpointing": enable})
        succeed(*arguments, ranks=2)
    assert np.abs(losses(tmp_path / "kept") - losses(tmp_path / "recomputed")).max() <= 1e-6


def test_zero_3_resumes_too(dataset, tmp_path):
    settings = {"steps": 6, "engine.zero_stage": 3, "run.checkpoint_every": 3}
    succeed(*tiny_run(tmp_path, dataset, name="whole", **settings), ranks=2)
    arguments = tiny_run(tmp_path, dataset, name="broken", **settings)
    ranks = start(*arguments, ranks=2)
    folder = tmp_path / "broken/checkpoints"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder.exists() and checkpoints(folder)):
        time.sleep(0.02)
    ranks.kill()
    if (tmp_path / "broken/config.yaml").exists():
        succeed(*arguments, "--resume", "auto", ranks=2)
    assert np.abs(losses(tmp_path / "broken") - losses(tmp_path / "whole")).max() <= 1e-6
    refused = train(*arguments, "--resume", "auto", "steps=8")
    assert refused.returncode == 2
    assert "was written by 2 ranks" in refused.stderr


def test_accumulation_and_bf16_run(dataset, tmp_path):
    settings = {"engine.micro_batch": 3, "engine.precision": "bf16", "objective.mask.residual": "none"}
    succeed(*tiny_run(tmp_path, dataset, steps=3, **settings))
    assert np.isfinite(losses(tmp_path / "run")).all()
    sizes = [len(keys) for _, _, _, keys in logged_keys(tmp_path / "run")]
    assert sum(sizes) == 3 * 8


def test_images_only_runs(dataset, tmp_path):
    succeed(*tiny_run(tmp_path, dataset, steps=2, **{"data.modalities": "[]"}))
    assert "loss/genome" not in read_jsonl(tmp_path / "run/metrics.jsonl")[0]


def test_interrupt_saves_and_says_how_to_go_on(dataset, tmp_path):
    ranks = start(*tiny_run(tmp_path, dataset, steps=5000))
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and len(read_lines(metrics)) >= 3):
        time.sleep(0.05)
    ranks.send_signal(signal.SIGINT)
    done = ranks.wait(60)
    assert done.returncode == 130, done.stderr[-2000:]
    assert "resume with --resume auto" in done.stderr + done.stdout
    saved = checkpoints(tmp_path / "run/checkpoints")
    assert len(saved) == 1
    assert int(saved[0].name.removeprefix("step-")) == len(read_lines(metrics))


NEWCOMER = {
    "missing dataset": ({"data.path": "nowhere"}, "no dataset.json there; make a dataset"),
    "wrong key": ({"batchsize": 3}, "did you mean batch_size?"),
    "unmatched": ({}, "belong to participants without genetics"),
    "no credentials": ({"data.path": "s3://bucket/x"}, "set AWS_ACCESS_KEY_ID"),
    "no GPU": ({"engine.device": "cuda"}, "no CUDA GPU is visible"),
    "run exists": ({"run.name": "old"}, "resume it with --resume auto, or choose another run.name"),
    "bad value": ({"batch_size": 0}, "batch_size=0: must be at least 1"),
}


@pytest.mark.parametrize("case", NEWCOMER)
def test_errors_a_newcomer_meets(case, dataset, tmp_path, s3, monkeypatch, capsys):
    """Each is one line with a remedy and exit status 2; met before any process group exists, so called in process."""
    from mrmfast.train import main

    settings, message = NEWCOMER[case]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, value in s3[0].items():
        monkeypatch.delenv(name, raising=False) if "KEY" in name else monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    if case == "unmatched":
        lonely = write_dataset(tmp_path / "lonely", participants=3)
        write_dataset(lonely, genetics=False, ids=["5000001", "5000002"])
        settings = {"data.path": lonely}
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.yaml").write_text("{}")
    assert main(tiny_run(tmp_path, dataset, **settings)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [message in line for line in lines] == [True], lines


def test_an_unreadable_image_ends_a_run_with_one_line(tmp_path):
    torn = write_dataset(tmp_path / "torn")
    shard = torn / "images/shard-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"\xff\xd9", b"\xff\x00"))
    reseal_shards(torn)
    done = train(*tiny_run(tmp_path, torn))
    assert done.returncode == 2, done.stderr[-1500:]
    (line,) = [line for line in done.stderr.splitlines() if "mrmfast: error:" in line]
    assert "is not a readable JPEG; 4 of 24 images cannot be read, more than data.unreadable=0.01 allows" in line
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_no_space(dataset, tmp_path):
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("this sandbox cannot mount a tmpfs")
    try:
        done = train(*tiny_run(small, dataset))
        assert done.returncode == 2
        assert "no space for checkpoints" in done.stderr
        assert "set run.dir" in done.stderr
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_the_launcher_passes_the_error_on(tmp_path):
    done = launch("--config", "configs/demo.yaml", f"data.path={tmp_path}/none", ranks=2)
    assert done.returncode == 2
    text = done.stdout + done.stderr
    assert text.count("mrmfast: error:") == 1, text


def test_step_seeds_differ_by_everything():
    seeds = {step_seed(a, b, c, d) for a in range(3) for b in range(3) for c in range(3) for d in range(3)}
    assert len(seeds) == 81


def test_logs_drop_steps_that_are_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = JSONLines(path, TrainState(step=2).step)
    log.write([{"step": 3, "again": True}])
    log.close()
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_checkpoint_with_code_in_it_is_not_run(dataset, tmp_path):
    import pickle

    arguments = tiny_run(tmp_path, dataset, steps=2)
    succeed(*arguments)
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    import torch

    (states,) = (tmp_path / "run/checkpoints/step-00000002").glob("*model_states.pt")
    torch.save({"x": Trap()}, states, pickle_module=pickle)
    seal(states.parent)  # by who can write there, the digests are no protection
    done = train(*arguments, "steps=4", "--resume", "auto")
    assert done.returncode == 2, done.stderr[-2000:]
    assert "holds something else than tensors" in done.stderr
    assert not trap.exists()


def test_a_run_killed_before_its_export_exports_at_the_next_start(dataset, tmp_path):
    arguments = tiny_run(tmp_path, dataset, steps=2)
    succeed(*arguments)
    exported = tmp_path / "run/encoder.safetensors"
    before = exported.read_bytes()
    exported.write_bytes(b"of an earlier checkpoint")
    done = succeed(*arguments, "--resume", "auto")
    assert "is complete at step 2" in done.stderr
    assert exported.read_bytes() == before
    # One rank runs without ZeRO, and two cannot take its checkpoint apart.
    refused = train(*arguments, "steps=3", "--resume", "auto", ranks=2)
    assert refused.returncode == 2
    assert "resume with engine.zero_stage=0" in refused.stderr


def test_two_processes_cannot_train_one_run(dataset, tmp_path, capsys, monkeypatch):
    from filelock import FileLock

    from mrmfast.train import main

    monkeypatch.chdir(ROOT)
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"):
        assert main(tiny_run(tmp_path, dataset)) == 2
    assert "another process is training this run" in capsys.readouterr().err
