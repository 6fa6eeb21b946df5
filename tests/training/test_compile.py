"""torch.compile: the same losses and gradients as without, a graph without breaks, code kept between runs."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mrmfast.errors import UserError
from mrmfast.models.config import ModelConfig
from mrmfast.models.decoders import ImageDecoderConfig
from mrmfast.objectives import build_objective
from mrmfast.objectives.mae import MAEConfig
from mrmfast.objectives.simclr import SimCLRConfig
from mrmfast.training.compile import blocks_of, compile_model
from tests.helpers.common import ROOT, TINY_MODEL, read_jsonl, train
from tests.helpers.contract import small_overrides
from tests.helpers.objectives import batch, build_mrm, loss_of


def step(model, seed=0):
    model.zero_grad(set_to_none=True)
    loss, _ = loss_of(model, *batch(), seed=seed)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.float().flatten() for p in model.parameters()])


def error(got, expected):
    return float((got - expected).norm() / expected.norm())


# A relation block, a plain block, SNN layers, decoders: every kind of block once.
SMALL = {"mask": {"blocks": 1}, "depth": 2, "genome_layers": 1, "alpha_dropout": 0.1}
# Traces and differentiates as Inductor does, and needs no C++ compiler, which takes minutes.
BACKEND = "aot_eager_decomp_partition"


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "recompute"), [("blocks", True), ("whole", False)])
def test_compiled_losses_and_gradients_equal_eager_ones(mode, recompute):
    torch._dynamo.reset()
    plain, compiled = build_mrm(**SMALL), build_mrm(**SMALL)
    for model in (plain, compiled):
        model.set_activation_checkpointing(recompute)
    compile_model(compiled, mode, backend=BACKEND)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for seed in (0, 1):  # another seed: other dropout from the same code
        (loss, gradient), (expected, expected_gradient) = step(compiled, seed), step(plain, seed)
        assert abs(loss - expected) <= 1e-5 * expected
        assert error(gradient, expected_gradient) <= 1e-5
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_bfloat16_is_as_close_to_float32_as_eager_bfloat16():
    torch._dynamo.reset()
    exact = step(build_mrm(**SMALL))
    plain, compiled = build_mrm(**SMALL).bfloat16(), build_mrm(**SMALL).bfloat16()
    compile_model(compiled, "whole", backend=BACKEND)
    usual, ours = step(plain), step(compiled)
    assert abs(ours[0] - exact[0]) <= 0.02 * exact[0]
    assert error(ours[1], exact[1]) <= 1.25 * error(usual[1], exact[1])


def test_off_compiles_nothing_and_whole_needs_less_than_zero_3():
    model = build_mrm(depth=3)
    forwards = [block.forward for block in blocks_of(model)]
    compile_model(model, "off")
    assert [block.forward for block in blocks_of(model)] == forwards
    with pytest.raises(UserError, match=r"engine\.compile=whole: ZeRO 3"):
        compile_model(model, "whole", zero_stage=3)


def test_an_objective_that_is_not_one_graph_compiles_its_blocks_alone():
    model = build_objective(SimCLRConfig(), ModelConfig("vit_tiny_patch16_224", depth=2), 32, None)
    assert len(blocks_of(model)) == 2
    with pytest.raises(UserError, match=r"engine\.compile=whole: this objective is not one graph"):
        compile_model(model, "whole")


def test_mae_is_one_graph():
    torch._dynamo.reset()
    config = MAEConfig(decoder=ImageDecoderConfig(32, 1, 2))
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build_objective(config, ModelConfig("vit_tiny_patch16_224", depth=2), 32, None))
    compile_model(models[1], "whole", backend="eager")
    (loss, gradient), (expected, expected_gradient) = step(models[1]), step(models[0])
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_ranks_train_alike_and_a_second_run_compiles_nothing(dataset, tmp_path, monkeypatch):
    """SimCLR: two blocks of one kind. ``benchmarks/training/compiled_zero.py`` has all kinds, stages and modes."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    environment = {"MRMFAST_CACHE": str(tmp_path / "cache")}
    losses, counts, seconds = [], [], []
    cases = (("eager", "off", 0, "false"), ("first", "blocks", 3, "false"), ("second", "blocks", 3, "true"))
    for name, mode, stage, recompute in cases:
        settings = {"data.path": dataset, "run.dir": tmp_path, "run.name": name, "model.depth": 2}
        settings |= {"batch_size": 8, "steps": 4, "optimiser.warmup": 1.0, "engine.compile": mode}
        settings |= {"engine.zero_stage": stage, "engine.activation_checkpointing": recompute}
        options = [*TINY_MODEL, *small_overrides("simclr"), *(f"{key}={value}" for key, value in settings.items())]
        start = time.perf_counter()
        done = train("--config", "configs/demo.yaml", *options, ranks=2, timeout=600, environment=environment)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append(np.array([entry["loss"] for entry in read_jsonl(tmp_path / name / "metrics.jsonl")]))
        counts.append([tuple(map(int, pair)) for pair in re.findall(r"(\d+) graphs compiled, (\d+) read", done.stderr)])
    apart = np.max([np.abs(compiled - losses[0]) / losses[0] for compiled in losses[1:]], axis=0)
    print("graphs compiled and read", counts, "seconds", np.round(seconds, 1), "losses apart", apart)
    assert counts == [[], [(2, 0)], [(0, 2)]]  # one graph forward, one backward
    assert len(losses[0]) == 4
    assert losses[0][-1] != losses[0][0]
    # AdamW's first steps are as long for a gradient near 0, whose sign rounding decides, as for any other.
    assert apart[0] <= 1e-5
    assert apart.max() <= 1e-4
    assert any((tmp_path / "cache/inductor").iterdir())


def test_a_graph_with_our_operators_has_the_same_key_in_every_process():
    """Inductor keeps its code under this key: it may depend on neither a process nor what that imports first."""
    start = "from tests.helpers.graph_keys import graph_keys; print(json.dumps(graph_keys()))"
    early = (
        "import sys, types; early = sys.modules['early'] = types.ModuleType('early'); import torch; early.torch = torch"
    )
    keys = []
    for seed, code in enumerate((f"import json; {start}", f"import json; {early}; {start}")):
        environment = {**os.environ, "PYTHONPATH": ".", "PYTHONHASHSEED": str(seed)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        keys.append(json.loads(done.stdout.splitlines()[-1]))
    assert len(set(keys[0])) == 2
    assert keys[0] == keys[1]
