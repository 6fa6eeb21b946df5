"""Every registered objective keeps the contract of ``mrmfast/objectives/base.py``.

A new objective is tested here without a change. The last tests show that each check fails for an objective that breaks
it.
"""

import shutil
from functools import partial

import numpy as np
import pytest

from mrmfast.objectives import OBJECTIVES, load_objective
from tests.helpers import contract, toys
from tests.helpers.common import TINY_MODEL, launch, read_jsonl, train

NAMES = sorted(OBJECTIVES)
CHECKS = [
    contract.check_loss,
    contract.check_gradients,
    contract.check_same_info_same_loss,
    contract.check_bf16,
    contract.check_averages,
    contract.check_account,
    contract.check_figures,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name, check):
    check(load_objective(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_export_is_the_encoder(name, tmp_path):
    contract.check_export(load_objective(name), tmp_path)


def official(name):
    """The objective with its published form by default."""
    cls = load_objective(name)
    return type(cls.__name__, (cls,), {"Config": partial(cls.Config, mode="official")})


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(load_objective(name).Config(), "mode")])
def test_the_published_form_trains_all_its_parameters_and_is_exported(name, tmp_path):
    contract.check_gradients(official(name))
    contract.check_same_info_same_loss(official(name))
    contract.check_export(official(name), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_yaml_and_page_exist(name):
    contract.check_yaml_and_page(name)


def arguments(name, dataset, folder, run, **settings):
    fixed = {"data.path": dataset, "run.dir": folder, "run.name": run, "batch_size": 8, "steps": 4}
    merged = {**fixed, "run.checkpoint_every": 2, "run.keep": 5, **settings}
    options = [*TINY_MODEL, *contract.small_overrides(name), *(f"{key}={value}" for key, value in merged.items())]
    return ["--config", "configs/demo.yaml", *options]


def losses(folder):
    return np.array([entry["loss"] for entry in read_jsonl(folder / "metrics.jsonl")])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_train_stages_agree_and_a_killed_run_resumes(name, dataset, tmp_path):
    """Two ranks at the highest stage, at stage 0, and stage 0 again from its middle.

    The launcher, which costs the imports of two processes, starts one method of either highest stage.
    """
    stage = load_objective(name).max_zero_stage
    start = launch if name in ("mrm", "attmask") else train
    done = start(*arguments(name, dataset, tmp_path, "high", **{"engine.zero_stage": stage}), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "high/encoder.safetensors").exists()
    done = train(*arguments(name, dataset, tmp_path, "zero", **{"engine.zero_stage": 0}), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    high, zero = losses(tmp_path / "high"), losses(tmp_path / "zero")
    assert len(high) == len(zero) == 4
    apart = (np.abs(high - zero) / np.maximum(1, zero)).max()  # a sum of many losses may be large
    print(f"{name}: ZeRO {stage} against 0, largest difference in 4 steps {apart:.1e}")
    assert apart <= 1e-3
    # What a kill after step 4 leaves: a checkpoint of step 2, and lines of the log beyond it.
    shutil.copytree(tmp_path / "zero", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed/checkpoints/step-00000004")
    (tmp_path / "killed/encoder.safetensors").unlink()
    resume = (*arguments(name, dataset, tmp_path, "killed", **{"engine.zero_stage": 0}), "--resume", "auto")
    done = train(*resume, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "steps 3 to 4" in done.stderr
    assert np.array_equal(losses(tmp_path / "killed"), zero)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_toy_keeps_the_contract(check):
    check(toys.Toy)


@pytest.mark.parametrize(
    ("toy", "check"),
    [
        (toys.NotFinite, contract.check_loss),
        (toys.Unused, contract.check_gradients),
        (toys.OtherRandomness, contract.check_same_info_same_loss),
        (toys.RoundedLoss, contract.check_bf16),
        (toys.MovedInForward, contract.check_averages),
        (toys.NeverMoved, contract.check_averages),
        (toys.RoundedAverage, contract.check_averages),
        (toys.ReadsValues, contract.check_account),
        (toys.FloatFigures, contract.check_figures),
    ],
    ids=lambda part: part.__name__,
)
def test_a_toy_that_breaks_the_contract_fails_its_check(toy, check):
    with pytest.raises((AssertionError, RuntimeError)):
        check(toy)


def test_a_toy_that_exports_something_else_fails_its_check(tmp_path):
    contract.check_export(toys.Toy, tmp_path)
    with pytest.raises(AssertionError):
        contract.check_export(toys.OtherExport, tmp_path)


def test_an_objective_without_config_or_page_fails_its_check(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "toy", "tests.helpers.toys:Toy")
    with pytest.raises(ValueError, match="no such config file"):
        contract.check_yaml_and_page("toy")
