"""engine.micro_batch=auto, the account behind it, MFU, and what running out of memory says."""

import pytest
import torch

from mrmfast import config as configs
from mrmfast.errors import UserError
from mrmfast.training import micro_batch as sizes
from mrmfast.training.engine import World, zero_stage_in_use
from mrmfast.training.memory import example_inputs
from mrmfast.training.mfu import measure_utilisation, peak_tflops
from mrmfast.training.micro_batch import Budget, fit_micro_batch, settle_micro_batch
from mrmfast.training.out_of_memory import is_out_of_memory, out_of_memory_message
from mrmfast.training.settings import TrainConfig
from tests.helpers.objectives import SPEC, build_mrm

CPU = World(0, 1, torch.device("cpu"), False)


def account(samples):
    """100 bytes, and 10 a sample."""
    return 100 + 10 * samples


def test_the_account_gives_the_largest_size_that_fits():
    budget = Budget(available=2000, gradients=300, states=400)
    size = fit_micro_batch(1000, budget, account, None)
    assert account(size) * sizes.TEMPORARIES <= budget.activations < account(size + 1) * sizes.TEMPORARIES
    assert fit_micro_batch(16, budget, account, None) == 16


def test_the_measured_peak_corrects_the_account_once():
    budget, tried = Budget(available=2000, gradients=300, states=400), []

    def measure(samples):
        tried.append(samples)
        return 300 + 100 + 24 * samples  # more than twice what the account says

    size = fit_micro_batch(1000, budget, account, measure)
    assert len(tried) == 1
    assert 100 + 24 * size <= budget.activations < 100 + 24 * (size + 1)


def test_a_trial_that_runs_out_of_memory_is_halved_and_one_sample_too_much_is_refused():
    budget = Budget(available=2000, gradients=300, states=400)

    def measure(samples):
        if samples > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 400 + 50 * samples

    size = fit_micro_batch(1000, budget, account, measure)
    assert 1 <= size <= 1300 // 50

    def never(samples):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match=r"micro_batch=auto: one sample needs .* set engine.activation_checkpointing"):
        fit_micro_batch(1000, budget, account, never)
    with pytest.raises(UserError, match="one sample needs"):
        fit_micro_batch(1000, Budget(800, 300, 400), account, None)


def test_auto_becomes_a_number_and_a_resumed_run_keeps_it(monkeypatch):
    model = build_mrm()
    options = ["batch_size=24", "data.image_size=32", "engine.micro_batch=auto"]
    config = configs.load(TrainConfig, None, options)

    def settled(recorded=0):
        return settle_micro_batch(config, model, SPEC, CPU, stage=0, recorded=recorded).engine.micro_batch

    assert settled() == 24  # everything fits
    assert settled(recorded=6) == 6
    one, two = (sizes.kept_bytes(model, example_inputs(model, SPEC, n, CPU.device)) for n in (1, 2))
    states = sum(sizes.state_bytes(sum(p.numel() for p in model.parameters()), False, 0, 1).values())
    states -= 4 * sum(p.numel() for p in model.parameters())
    little = states + sizes.TEMPORARIES * (one + 7.5 * (two - one))
    monkeypatch.setattr(sizes, "available_bytes", lambda *_: little)
    assert settled() == 8
    number = settle_micro_batch(config, model, SPEC, CPU, stage=0, recorded=0)
    assert configs.load(TrainConfig, None, [*options[:2], f"engine.micro_batch={number.engine.micro_batch}"]) == number
    assert number.micro_batch(1) == 8


def test_containers_limit_the_memory(tmp_path):
    assert sizes._container_bytes(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("max\n")
    assert sizes._container_bytes(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert sizes._container_bytes(tmp_path) == 600


def test_one_rank_runs_without_zero_unless_its_checkpoint_has_it():
    assert zero_stage_in_use(1, 1, 0) == zero_stage_in_use(3, 1, 0) == 0
    assert zero_stage_in_use(1, 1, 1) == 1
    assert zero_stage_in_use(0, 1, 1) == 0
    assert zero_stage_in_use(2, 4, 0) == 2


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA RTX A6000", 155),
        ("Tesla V100-PCIE-16GB", 112),
        ("Tesla V100-SXM2-32GB", 125),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_of_cards(name, peak):
    assert peak_tflops(name) == peak


def test_utilisation_is_the_models_products_over_the_peak():
    model = build_mrm()
    inputs = example_inputs(model, SPEC, 1, torch.device("cpu"))
    options = {"bf16": False, "ranks": 2}
    assert measure_utilisation(model, inputs, torch.device("cpu"), **options, peak=None) is None
    plain = measure_utilisation(model, inputs, torch.device("cpu"), **options, peak=0.5)
    assert plain.of(100) == pytest.approx(plain.flops * 100 / 1e12)
    model.set_activation_checkpointing(True)
    again = measure_utilisation(model, inputs, torch.device("cpu"), **options, peak=0.5)
    assert again.flops == plain.flops  # what is computed again is not counted
    assert model.activation_checkpointing


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "GPU memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (MemoryError("Unable to allocate 8.00 GiB"), "memory"),
    ],
)
def test_out_of_memory_is_one_line_with_the_setting(error, memory, monkeypatch, capsys, tmp_path):
    from mrmfast import train
    from tests.helpers.common import ROOT

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(train, "build", fail)
    monkeypatch.chdir(ROOT)
    assert train.main(["--config", "configs/demo.yaml", "engine.micro_batch=4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"out of {memory}; lower engine.micro_batch (it is 4), or set engine.activation_checkpointing=true" in line


def test_other_errors_keep_their_traceback(monkeypatch):
    from mrmfast import train
    from tests.helpers.common import ROOT

    def fail(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(train, "build", fail)
    monkeypatch.chdir(ROOT)
    with pytest.raises(RuntimeError, match="shapes"):
        train.main(["--config", "configs/demo.yaml"])
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert "checkpoint" not in out_of_memory_message(MemoryError(), None, 8, True)


@pytest.mark.parametrize("outcome", ["done", "user error", "defect"])
def test_the_process_group_is_destroyed_at_every_exit(outcome, monkeypatch):
    from mrmfast import train
    from tests.helpers.common import ROOT

    def build(*_, **__):
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        if outcome == "user error":
            raise UserError("a mistake")
        if outcome == "defect":
            raise RuntimeError("a defect")

    monkeypatch.setattr(train, "build", build)
    monkeypatch.setattr(train, "run", lambda _: 0)
    monkeypatch.chdir(ROOT)
    arguments = ["--config", "configs/demo.yaml"]
    if outcome == "defect":
        with pytest.raises(RuntimeError, match="a defect"):
            train.main(arguments)
    else:
        assert train.main(arguments) == (0 if outcome == "done" else 2)
    assert not torch.distributed.is_initialized()
