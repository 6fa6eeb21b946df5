"""``mrmfast train``: configs by name, one process or the launcher, signals."""

import os
import signal
import subprocess
import sys
import types

import pytest
import torch

from mrmfast import cli
from mrmfast.cli import configs
from mrmfast.command import DONE, INTERRUPTED, USER_ERROR
from mrmfast.errors import UserError
from tests.helpers.common import ROOT, TINY, read_jsonl


@pytest.fixture
def trainer(monkeypatch):
    """``mrmfast.train`` and the launcher replaced by recorders."""
    calls = types.SimpleNamespace(here=[], launched=[])
    module = types.ModuleType("mrmfast.train")
    module.main = lambda argv: calls.here.append(argv) or 0
    monkeypatch.setitem(sys.modules, "mrmfast.train", module)
    monkeypatch.setattr("mrmfast.cli.launch.run", lambda devices, argv: calls.launched.append((devices, argv)) or 0)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return calls


def gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_configs_of_the_package_are_those_of_the_repository():
    assert configs.FOLDER.resolve() == (ROOT / "configs").resolve()
    assert {"demo", "ukb_base", "ukb_large", "tcga"} <= configs.shipped().keys()


def test_a_config_is_found_by_name_or_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.find("ukb_base") == str(configs.FOLDER / "ukb_base.yaml")
    (tmp_path / "demo").mkdir()  # the folder of scripts/demo.sh
    assert configs.find("demo") == str(configs.FOLDER / "demo.yaml")
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    assert configs.find("mine.yaml") == "mine.yaml"
    for name in ("ukb_bse", "nothing.yaml"):
        with pytest.raises(UserError, match="no such file"):
            configs.find(name)


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        ([], "never"),
        (["--resume"], "auto"),
        (["--resume", "auto"], "auto"),
        (["--resume=auto"], "auto"),
    ],
)
def test_one_process_trains_here(trainer, monkeypatch, words, resume):
    gpus(monkeypatch, 1)
    assert cli.main(["train", "seed=1", "--config", "demo", *words, "steps=4"]) == DONE
    assert trainer.here == [["--config", str(configs.FOLDER / "demo.yaml"), "--resume", resume, "seed=1", "steps=4"]]
    assert trainer.launched == []


def test_the_launcher_is_used_when_several_gpus_are_visible(trainer, monkeypatch):
    gpus(monkeypatch, 4)
    assert cli.main(["train", "--config", "demo", "steps=4"]) == DONE
    assert cli.main(["train", "--config", "demo", "--gpus", "2"]) == DONE
    assert [devices for devices, _ in trainer.launched] == [["0", "1", "2", "3"], ["0", "1"]]
    assert trainer.launched[0][1][-1] == "steps=4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc,1,2")
    assert cli.main(["train", "--config", "demo", "--gpus", "2"]) == DONE
    assert trainer.launched[-1][0] == ["5", "GPU-abc"]
    assert trainer.here == []


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--gpus", "1"], {}),
        (["engine.device=cpu"], {}),
        (["--print-config"], {}),
        ([], {"RANK": "0"}),  # torchrun has started this process
    ],
)
def test_the_launcher_is_not_used(trainer, monkeypatch, words, environment):
    gpus(monkeypatch, 4)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "--config", "demo", *words]) == DONE
    assert trainer.launched == []
    assert len(trainer.here) == 1


def test_processes_on_the_cpu(trainer, monkeypatch):
    gpus(monkeypatch, 0)
    assert cli.main(["train", "--config", "demo", "--gpus", "2", "engine.device=cpu"]) == DONE
    assert trainer.launched[0][0] == ["0", "1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--gpus", "3"], "--gpus 3: 2 GPUs are visible"), (["optimizer.lr=1"], "did you mean optimiser?")],
)
def test_errors_come_before_any_process_is_started(trainer, monkeypatch, capsys, words, message):
    gpus(monkeypatch, 2)
    assert cli.main(["train", "--config", "demo", *words]) == USER_ERROR
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not trainer.launched and not trainer.here


# A stand-in for the launcher: says how many SIGTERM it got, one second after the first.
LAUNCHER = """
import signal, sys, time
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
signal.signal(signal.SIGINT, lambda *_: got.append(100))
print("ready", flush=True)
while not got: time.sleep(0.01)
time.sleep(1)
print("got", sum(got), flush=True)
sys.exit(1)
"""
RUN = """
import sys
from mrmfast.cli import launch
launch.command_line = lambda devices, argv, port: [sys.executable, "-c", sys.argv[1]]
sys.exit(launch.run(["0", "1"], []))
"""


def start_stand_in(code):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, code], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_reaches_the_launcher_once(name):
    """As from a terminal, where Ctrl-C goes to the whole process group; a second one follows."""
    process = start_stand_in(LAUNCHER)
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):
        os.killpg(process.pid, getattr(signal, name))
    assert process.stdout.read() == "got 1\n"
    assert process.wait(60) == INTERRUPTED


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(2)", 2), ("", 0)])
def test_the_status_of_the_launcher_is_passed_on(code, status):
    assert start_stand_in(code).wait(60) == status


@pytest.mark.slow
def test_two_processes_train_from_any_folder(dataset, tmp_path):
    """The real launcher, two ranks on the CPU, in a folder that holds nothing of mrmfast."""
    words = ["train", "--config", "demo", "--gpus", "2", "engine.device=cpu", f"data.path={dataset}", *TINY]
    words += ["batch_size=8", "steps=2", "run.name=two"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "mrmfast", *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "two" / "encoder.safetensors").exists()
    assert len(read_jsonl(tmp_path / "runs" / "two" / "metrics.jsonl")) == 2
    samples = read_jsonl(tmp_path / "runs" / "two" / "samples.jsonl")
    assert {line["rank"] for line in samples} == {0, 1}
