"""What a GPU would run, run here: a training step on fake CUDA tensors, its graph, every line of the GPU paths."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from tests.helpers.fake_cuda import CUDA, Devices, backward, mode, move_module, on_cuda
from tests.helpers.objectives import batch, build_mrm, loss_of

pytest.importorskip("triton")

from benchmarks.relation import cubin
from mrmfast.batch import Batch
from mrmfast.objectives.mrm import matching
from mrmfast.ops.genome_unpack import triton as unpacking
from mrmfast.ops.relation_masking import operators
from mrmfast.ops.relation_masking import triton as relation
from mrmfast.training.optimiser import OptimiserConfig, build_optimiser

ROOT = Path(__file__).resolve().parents[2]
# The pairs to match are drawn on the CPU and copied; the rest stays on the device.
DRAWN_ON_CPU = {"aten.randperm.generator", "aten.slice.Tensor", "aten.lift_fresh.default"}


def fake_inputs(fake):
    image, packed, present = batch()
    return on_cuda(fake, image), tuple(on_cuda(fake, part) for part in packed), on_cuda(fake, present)


@pytest.mark.parametrize("options", [{}, {"genome": None}, {"dtype": torch.bfloat16}], ids=str)
def test_a_whole_training_step_runs_on_fake_cuda_tensors(options):
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)
    model, fake = build_mrm(alpha_dropout=0.05, **options).to(dtype), mode()
    move_module(fake, model)
    image, packed, present = fake_inputs(fake)
    if options:
        packed, present = (), present[:, :0]
    optimiser = build_optimiser(model, OptimiserConfig(), CUDA)
    with fake:
        moved = Batch((image,), (None,), packed, present, None, (), (), 0).to(CUDA)
        with Devices() as devices:
            loss, parts = loss_of(model, moved.views[0], moved.packed, moved.present, seed=3)
            backward(loss)
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
    assert loss.device == CUDA
    assert all(part.device == CUDA for part in parts.values())
    assert all(p.grad is not None and p.grad.device == CUDA for p in model.parameters())
    assert all(state["exp_avg"].device == CUDA for state in optimiser.state.values())
    assert set(devices.on_cpu) <= DRAWN_ON_CPU
    relations = 8 if not options else 2
    for name in ("forward", "backward"):
        assert devices.calls[f"mrmfast.relation_{name}.default"] == relations
    assert devices.calls["mrmfast.unpack_genome.default"] == (not options)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_training_graph_is_one_graph_for_cuda_tensors(recompute):
    model, fake = build_mrm(alpha_dropout=0.05, depth=3), mode()
    model.set_activation_checkpointing(recompute)
    move_module(fake, model)
    arguments, graphs = (*fake_inputs(fake), on_cuda(fake, torch.arange(6))), []

    def capture(module, inputs):
        graphs.append(module)
        return module.forward

    with fake:
        parts = torch.compile(model.losses, backend=capture, fullgraph=True)(*arguments)
    assert set(parts) == {"image", "genome", "self", "cross"}
    assert all(part.device == CUDA for part in parts.values())
    (graph,) = graphs
    calls = [str(node.target) for part in graph.modules() if hasattr(part, "graph") for node in part.graph.nodes]
    assert calls.count("mrmfast.relation_forward.default") == 8
    assert calls.count("mrmfast.unpack_genome.default") == 1


def test_a_tensor_on_the_wrong_device_is_an_error(monkeypatch):
    """The net itself: a choice of pairs that stays on the CPU, as without `chosen.to(device)`."""
    model, fake = build_mrm(), mode()
    move_module(fake, model)
    image, packed, present = fake_inputs(fake)
    with fake, pytest.raises(RuntimeError, match="device"):
        model.losses(image, (packed[0].cpu(), *packed[1:]), present, on_cuda(fake, torch.arange(6)))
    with fake:
        pool = matching.pool
        monkeypatch.setattr(
            "mrmfast.objectives.mrm.objective.pool", lambda tokens, chosen: pool(tokens, chosen.cpu() + 0)
        )
        parts = [value for value in model.losses(image, packed, present, on_cuda(fake, torch.arange(6))).values()]
    assert len(parts) == 4  # indices may be on the CPU: a wait for the device, which Devices would show


@contextmanager
def recorded_launches(monkeypatch):
    """Let the launching code run on fake CUDA tensors, and collect what it would launch."""
    launches = []

    def record(self, *arguments, **options):
        tensors = [x for x in torch.utils._pytree.tree_leaves(arguments) if isinstance(x, torch.Tensor)]
        launches.append((self.__name__, options["grid"], tensors))

    monkeypatch.setattr(cubin.JITFunction, "run", record)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())  # asks the driver
    yield launches


@pytest.mark.parametrize("form", ["intact", "masked", "both", "halves"])
def test_launches_of_relation_masking_are_given_tensors_of_the_gpu(monkeypatch, form):
    fake = mode()
    with fake, recorded_launches(monkeypatch) as launches:
        qkv = torch.empty(2, 50, 3, 4, 64, device=CUDA, dtype=torch.bfloat16).permute(2, 0, 3, 1, 4)
        out, rows = operators.run_forward(relation, [qkv], 25, form)
        gradients = operators.run_backward(relation, [qkv], rows, out, 25, form)
    calls = 2 if form == "halves" else 1
    names = ["forward_kernel"] * calls + ["query_gradient_kernel", "key_gradient_kernel"] * calls
    assert [name for name, *_ in launches] == names
    for _, grid, tensors in launches:
        assert min(grid) > 0
        assert len(tensors) >= 6
        assert all(isinstance(x, FakeTensor) and x.device == CUDA for x in tensors)
    # What the fake implementation promises to the compiler is what the launching code returns.
    with fake:
        promised = operators.forward([qkv], 25, form)
        promised_gradients = operators.backward([qkv], rows, out, 25, form)
    for x, y in zip((out, rows, *gradients), (*promised, *promised_gradients), strict=True):
        assert (x.shape, x.stride(), x.dtype, x.device) == (y.shape, y.stride(), y.dtype, y.device)


def test_launches_of_genome_unpacking_are_given_tensors_of_the_gpu(monkeypatch):
    fake = mode()
    _, packed, present = fake_inputs(fake)
    kinds = (("snps", "genotype", 9), ("pgs", "float", 4), ("burden", "binary", 5))
    with fake, recorded_launches(monkeypatch) as launches:
        got = unpacking.unpack_genome(packed, present, kinds, torch.zeros(18, device=CUDA), torch.bfloat16)
    assert len(launches) == 3
    assert all(x.device == CUDA for _, _, tensors in launches for x in tensors)
    assert [(x.shape, x.dtype, x.device) for x in got] == [((6, 18), torch.bfloat16, CUDA), ((6, 18), torch.bool, CUDA)]


def missing_lines(*skipped):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": "."}
    command = [sys.executable, "tests/helpers/gpu_lines.py", *skipped]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_line_of_the_gpu_paths_is_executed():
    missing = missing_lines()
    assert len(missing) == 4
    assert not any(missing.values()), missing


def test_a_line_that_nothing_executes_is_listed():
    missing = missing_lines("no queries", "unpack")
    assert missing["mrmfast/ops/relation_masking/triton.py"]
    assert missing["mrmfast/ops/genome_unpack/triton.py"]
