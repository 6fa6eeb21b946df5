"""torch.compile: the same losses and gradients as without, a graph without breaks, code kept between runs."""

import json
import os
import subprocess
import sys

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
from tests.helpers.common import ROOT, launch, read_jsonl, tiny_run
from tests.helpers.objectives import batch, build_mrm, loss_of


def step(model, seed=0):
    model.zero_grad(set_to_none=True)
    loss, _ = loss_of(model, *batch(), seed=seed)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.float().flatten() for p in model.parameters()])


def error(got, expected):
    return float((got - expected).norm() / expected.norm())


SMALL = {"depth": 3, "genome_layers": 1, "alpha_dropout": 0.1}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("mode", "recompute", "backend"),
    [
        ("blocks", False, "aot_eager_decomp_partition"),
        ("blocks", True, "aot_eager_decomp_partition"),
        ("whole", False, "aot_eager_decomp_partition"),
        ("whole", True, "aot_eager_decomp_partition"),
        ("blocks", False, "inductor"),
        ("whole", False, "inductor"),
    ],
)
def test_compiled_losses_and_gradients_equal_eager_ones(mode, recompute, backend):
    torch._dynamo.reset()
    plain, compiled = build_mrm(**SMALL), build_mrm(**SMALL)
    for model in (plain, compiled):
        model.set_activation_checkpointing(recompute)
    compile_model(compiled, mode, backend=backend)
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
    compile_model(compiled, "whole", backend="aot_eager_decomp_partition")
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


CACHED = """
import json
import torch
from tests.training.test_compile import SMALL, build_mrm, compile_model, step
model = build_mrm(**SMALL)
compile_model(model, "blocks")
step(model)
counters = torch._dynamo.utils.counters["inductor"]
print(json.dumps({name: counters[name] for name in ("fxgraph_cache_hit", "fxgraph_cache_miss")}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xfail(reason="12 of 12 graphs miss the cache in a second run (docs/log.md)")
def test_a_second_run_finds_its_code_in_the_cache(tmp_path):
    environment = {**os.environ, "MRMFAST_CACHE": str(tmp_path), "PYTHONPATH": "."}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    found = []
    for _ in range(2):
        command = [sys.executable, "-c", CACHED]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = found
    assert first["fxgraph_cache_miss"] > 0
    assert second["fxgraph_cache_miss"] == 0
    assert second["fxgraph_cache_hit"] == first["fxgraph_cache_miss"]
    assert any((tmp_path / "inductor").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.xfail(run=False, reason="not yet seen to pass: a case compiles for minutes on two cores")
@pytest.mark.parametrize(
    ("mode", "stage", "recompute"), [("whole", 1, "false"), ("blocks", 2, "true"), ("blocks", 3, "false")]
)
def test_two_ranks_train_alike_compiled_at_every_zero_stage(dataset, tmp_path, mode, stage, recompute):
    settings = {"steps": 4, "model.alpha_dropout": 0.05, "optimiser.warmup": 1.0, "engine.zero_stage": stage}
    settings["engine.activation_checkpointing"] = recompute
    losses = []
    for compiled in ("off", mode):
        name = f"compile-{compiled}"
        arguments = tiny_run(tmp_path, dataset, name=name, **settings, **{"engine.compile": compiled})
        done = launch(*arguments, ranks=2, timeout=900, environment={"MRMFAST_CACHE": str(tmp_path / "cache")})
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append(np.array([entry["loss"] for entry in read_jsonl(tmp_path / name / "metrics.jsonl")]))
    assert len(losses[0]) == 4
    assert np.abs(losses[1] - losses[0]).max() <= 1e-4
