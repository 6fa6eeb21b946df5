"""Resume from a checkpoint: which config changes count, what is refused, how damage is reported."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from mrmfast.batch import ViewSpec
from mrmfast.data.prefetch import DevicePrefetcher
from mrmfast.errors import SharedError
from mrmfast.formats.checksums import seal
from mrmfast.meters import Meters
from mrmfast.objectives.base import TrainableModule
from mrmfast.training import checkpoint, loop
from mrmfast.training.late_metrics import LAG, LateMetrics
from mrmfast.training.recorder import StepRecorder
from mrmfast.training.run_log import RunConfig, RunLog
from mrmfast.training.step import Interrupt, Launched, launch_step
from tests.helpers.common import ROOT, read_jsonl, tiny_run, train

pytestmark = pytest.mark.slow

# Builds the run once with other options than it was saved with, then loads damaged copies of its checkpoint.
SCRIPT = """
import json, sys
from pathlib import Path
from mrmfast import config as configs
from mrmfast.errors import UserError
from mrmfast.batch import ViewSpec
from mrmfast.objectives.base import TrainableModule
from mrmfast.training import checkpoint
from mrmfast.training.build import build
from mrmfast.training.settings import TrainConfig

job = build(configs.load(TrainConfig, "configs/demo.yaml", sys.argv[2:]), resume=True)
groups = job.engine.optimizer.param_groups
found = {"options": [[group["weight_decay"], *group["betas"]] for group in groups],
         "clip": job.engine.optimizer.clip, "precision": job.state.precision}
for copy in sorted(Path(sys.argv[1]).iterdir()):
    try:
        checkpoint.load(job.engine, copy / "step-00000002", job.state.dataset, job.state.precision)
        found[copy.name] = "loaded"
    except UserError as error:
        found[copy.name] = str(error)
print(json.dumps(found))
"""


def damage(folder, copies):
    """Copies of a checkpoint by what is wrong with them."""

    def copy(name):
        return shutil.copytree(folder, copies / name / folder.name)

    (weights,) = copy("weights missing").glob("*model_states.pt")
    weights.unlink()
    (states,) = copy("model cut short").glob("*model_states.pt")
    states.write_bytes(states.read_bytes()[: states.stat().st_size // 2])
    (copy("state damaged") / "state.json").write_bytes(b'{"step": "\xff\xfe"}')
    path = copy("other precision") / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "bf16"}))
    seal(path.parent)
    path = copy("older") / "state.json"
    (path.parent / "checksums.json").unlink()
    new = ("precision", "sealed")
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in new}))
    path = copy("older, a bit in data.pkl") / "state.json"
    path.write_text((copies / "older" / folder.name / "state.json").read_text())
    (path.parent / "checksums.json").unlink()
    (states,) = path.parent.glob("*model_states.pt")
    raw = bytearray(states.read_bytes())
    raw[raw.index(b"data.pkl") + 200] ^= 0x80
    states.write_bytes(raw)


def test_what_counts_and_what_is_refused(dataset, tmp_path):
    arguments = tiny_run(tmp_path, dataset, steps=2)
    done = train(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    copies = tmp_path / "copies"
    damage(tmp_path / "run/checkpoints/step-00000002", copies)
    overrides = ["steps=4", "optimiser.weight_decay=0.3", "optimiser.betas=[0.8, 0.9]", "optimiser.clip=0.25"]
    command = [sys.executable, "-c", SCRIPT, str(copies), *arguments[2:], *overrides]
    no_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=no_gpu, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["options"] == [[0.3, 0.8, 0.9], [0.0, 0.8, 0.9]]
    assert found["clip"] == 0.25
    assert found["precision"] == "fp32"
    assert found["older"] == "loaded"
    assert "a file is damaged; remove this checkpoint" in found["older, a bit in data.pkl"]
    assert "mp_rank_00_model_states.pt: is missing; remove this checkpoint" in found["weights missing"]
    assert "SHA-256 differs from checksums.json; remove this checkpoint" in found["model cut short"]
    assert "state.json: missing or damaged; remove" in found["state damaged"]
    assert "was written in bf16, this run is fp32; resume with engine.precision=bf16" in found["other precision"]


def test_bf16_is_not_resumed_in_fp32_and_exports_its_float32_weights(dataset, tmp_path):
    arguments = tiny_run(tmp_path, dataset, steps=2, **{"engine.zero_stage": 2})
    assert train(*arguments, "engine.precision=bf16").returncode == 0
    tensors = load_file(tmp_path / "run/encoder.safetensors")
    assert all(one.dtype == torch.float32 for one in tensors.values())
    weight = tensors["blocks.0.attn.qkv.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())
    refused = train(*arguments, "steps=3", "engine.precision=fp32", "--resume", "auto")
    assert refused.returncode == 2
    assert "resume with engine.precision=bf16" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_one_rank_alone_meets_is_said_once(dataset, tmp_path):
    arguments = tiny_run(tmp_path, dataset, steps=2)
    assert train(*arguments, ranks=2).returncode == 0
    (states,) = (tmp_path / "run/checkpoints/step-00000002").glob("zero_pp_rank_1_*optim_states.pt")
    states.write_bytes(states.read_bytes()[:1000])
    refused = train(*arguments, "steps=3", "--resume", "auto", ranks=2)
    text = refused.stdout + refused.stderr
    assert refused.returncode == 2
    assert text.count("mrmfast: error:") == 1, text[-3000:]
    assert "optim_states.pt: SHA-256 differs" in text


def test_room_is_counted_where_checkpoints_lie(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    for name in ("step-00000001", ".step-00000002.partial"):
        (folder / name).mkdir(parents=True)
        (folder / name / "states.pt").write_bytes(bytes(1600))
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9999, 9999, 400))
    checkpoint.need_space(folder, 100, keep=1)  # 3,600 bytes, of which 3,200 are there
    with pytest.raises(checkpoint.UserError, match="no space for checkpoints"):
        checkpoint.need_space(folder, 101, keep=1)


def test_a_second_signal_of_the_same_kind_ends_at_once():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        interrupt = loop._on_interrupt()
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)  # the launcher's, after Ctrl-C: still a checkpoint
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class Engine:
    """A DeepSpeed engine that leaves its step out."""

    skipped_steps = 3
    optimizer = None
    loss = 1.0
    module = TrainableModule()

    def gradient_accumulation_steps(self):
        return 1

    def __call__(self, *_):
        return torch.tensor(self.loss), {"image": torch.tensor(self.loss)}

    def backward(self, _):
        pass

    step = gradient_accumulation_steps

    def get_global_grad_norm(self):
        return math.inf


def made_up_job(engine):
    from types import SimpleNamespace as Some
    from unittest.mock import MagicMock

    job = MagicMock(engine=engine, state=checkpoint.TrainState(), steps=9, utilisation=None)
    job.schedule.optimizer.param_groups = [{"lr": 0.1}]
    job.loader = MagicMock(sampler=range(10), skipped_samples={}, meters=Meters(), views=(ViewSpec(),))
    job.config = Some(seed=0, batch_size=2, run=Some(log_samples=False), engine=Some(compile="off"))
    job.world = Some(rank=0, size=1, device=torch.device("cpu"))
    batches = DevicePrefetcher(
        iter([MagicMock(keys=["a"], views=(torch.zeros(1),), photometric=(None,), end=2 * n) for n in range(1, 9)]),
        job.world.device,
    )
    return job, batches


def test_gradients_that_are_not_finite_are_reported_and_stay_json(tmp_path):
    job, batches = made_up_job(Engine())
    (tmp_path / "run").mkdir()
    log = RunLog(RunConfig(dir=str(tmp_path), name="run"), 0)
    recorder = StepRecorder(job, log, Interrupt())
    launch_step(job, batches, recorder.late, Interrupt())
    recorder.read(0)
    log.close()
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["grad_norm"] is None
    assert read_jsonl(tmp_path / "run/metrics.jsonl")[0]["skipped"] == 3


def test_a_loss_that_is_not_finite_stops_the_run_one_step_late_and_every_line_before_it_is_written(tmp_path):
    job, batches = made_up_job(Engine())
    (tmp_path / "run").mkdir()
    log = RunLog(RunConfig(dir=str(tmp_path), name="run"), 0)
    recorder = StepRecorder(job, log, Interrupt())
    for number in range(1, 4):
        job.engine.loss = math.nan if number == 3 else float(number)
        launch_step(job, batches, recorder.late, Interrupt())
        recorder.read(LAG)
    assert [line["loss"] for line in read_jsonl(tmp_path / "run/metrics.jsonl")] == [1.0, 2.0]
    launch_step(job, batches, recorder.late, Interrupt())
    with pytest.raises(SharedError, match="loss is nan at step 3"):
        recorder.read(LAG)
    log.close()
    assert [line["step"] for line in read_jsonl(tmp_path / "run/metrics.jsonl")] == [1, 2]


def test_all_ranks_learn_of_an_interrupt_with_the_losses():
    job, batches = made_up_job(Engine())
    interrupt = Interrupt(asked=True)
    launch_step(job, batches, LateMetrics(), interrupt)
    assert interrupt.agreed
    recorder = StepRecorder(job, None, interrupt := Interrupt())
    launched = Launched({"step": 1, "epoch": 0.1, "lr": 0.1}, [], 2, None)
    recorder.late.push(("loss", "asked"), torch.tensor([1.0, 0.5]), launched)  # one of two ranks
    recorder.read(0)
    assert interrupt.agreed
