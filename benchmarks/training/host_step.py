"""Host time of a training step: our engine against a plain loop, with tensors so small that only Python is left.

Method: MRM with 363 parameter tensors as in ViT-B, but 48 wide, on one CPU thread; the same Python drives a GPU.
The contenders take turns in one process and start each of their steps in the same state of the random generator:

- ours: :func:`mrmfast.training.step.launch_step` and the recorder on a DeepSpeed engine as a run builds it;
- plain: forward, backward, ``clip_grad_norm_``, fused AdamW (in bf16 on float32 copies), ``loss.item()``; over ranks
  gradients averaged in one message;
- DeepSpeed's own: the same engine with DeepSpeed's optimiser, which is what several ranks have and one rank had.

Gate: the losses of our steps equal those of the plain loop. Times are CPU seconds of the process, medians over turns.

Run by ``python -m benchmarks.train_step --host``; by itself it prints JSON.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from benchmarks.harness import Bench
from mrmfast.batch import Batch, GenomeSpec, ModalitySpec, ViewSpec
from mrmfast.data.prefetch import DevicePrefetcher
from mrmfast.meters import Meters
from mrmfast.models.config import ModelConfig
from mrmfast.models.decoders import GenomeDecoderConfig, ImageDecoderConfig
from mrmfast.objectives import build_objective
from mrmfast.objectives.base import Objective
from mrmfast.objectives.mrm import MRMConfig, ReconstructConfig
from mrmfast.training.checkpoint import TrainState
from mrmfast.training.engine import EngineConfig, World, initialise_deepspeed, join_world, leave_world
from mrmfast.training.late_metrics import LAG
from mrmfast.training.memory import example_inputs
from mrmfast.training.optimiser import OptimiserConfig, Schedule, build_optimiser
from mrmfast.training.recorder import StepRecorder
from mrmfast.training.step import Interrupt, launch_step, step_seed

SAMPLES, SIZE, STEPS_TO_COMPARE, ROUNDS = 2, 32, 8, 40
OPTIONS = OptimiserConfig(lr=1e-3)
SCHEDULE = 100  # steps: the weights move within the few that are compared


@timm.models.register_model
def vit_narrow_patch16(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """Build a ViT with ViT-B's 12 blocks and a width of 48."""
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        options.pop(key, None)
    return VisionTransformer(**{"patch_size": 16, "embed_dim": 48, "depth": 12, "num_heads": 3, **options})


def narrow_genome() -> GenomeSpec:
    """Return 48 groups of three SNPs."""
    return GenomeSpec((ModalitySpec("snps", "genotype", 144),), (3,) * 48, tuple(map(str, range(48))), torch.ones(144))


def build_model(bf16: bool) -> Objective:
    """Build the model with the same weights each time."""
    torch.manual_seed(0)
    decoders = ReconstructConfig(
        image_decoder=ImageDecoderConfig(width=32, heads=2), genome_decoder=GenomeDecoderConfig(width=32)
    )
    config = MRMConfig(reconstruct=decoders)
    model = build_objective(config, ModelConfig(arch="vit_narrow_patch16"), SIZE, narrow_genome())
    return model.bfloat16() if bf16 else model


def one_batch() -> Batch:
    """Return the batch that all steps train on."""
    generator = torch.Generator().manual_seed(1)
    _, packed, present, *_ = example_inputs(build_model(bf16=False), narrow_genome(), SAMPLES, torch.device("cpu"))
    image = torch.randint(0, 256, (SAMPLES, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return Batch((image,), (None,), packed, present, None, ("0",) * SAMPLES, (0,) * SAMPLES, SAMPLES)


class Ours:
    """Steps of a run: engine, step, recorder.

    Parameters
    ----------
    world : World
    stage : int
        ZeRO stage in use; None for the buffers of one rank.
    """

    def __init__(self, world: World, stage: int | None) -> None:
        model = build_model(world.bf16)
        optimiser = build_optimiser(model, OPTIONS, world.device, flat_over=world.size if stage is None else None)
        batch_size = SAMPLES * world.size
        engine = initialise_deepspeed(
            model,
            optimiser,
            world,
            zero_stage=stage or 0,
            batch_size=batch_size,
            micro_batch=SAMPLES,
            clip=OPTIONS.clip,
        )
        loader = SimpleNamespace(sampler=range(1 << 30), meters=Meters(), skipped_samples={}, views=(ViewSpec(),))
        run = SimpleNamespace(log_samples=False)
        self._job: Any = SimpleNamespace(
            config=SimpleNamespace(seed=0, batch_size=batch_size, run=run, engine=SimpleNamespace(compile="off")),
            world=world,
            engine=engine,
            schedule=Schedule(optimiser, OPTIONS, SCHEDULE),
            loader=loader,
            state=TrainState(),
            steps=1 << 20,
            utilisation=None,
        )
        self._batches = DevicePrefetcher((batch for batch in itertools.repeat(one_batch())), world.device)
        self._interrupt = Interrupt()
        quiet = World(1, world.size, world.device, world.bf16)  # no progress bar
        self._recorder = StepRecorder(SimpleNamespace(**{**vars(self._job), "world": quiet}), self, self._interrupt)  # type: ignore[arg-type]
        self.losses: list[float] = []

    def log(self, entry: dict[str, Any], samples: list[Any]) -> None:
        """Take a line of the log in the place of a file."""
        self.losses.append(entry["loss"])

    def step(self) -> None:
        """Do what the training loop does in a step."""
        launch_step(self._job, self._batches, self._recorder.late, self._interrupt)
        self._recorder.read(LAG)

    def finish(self) -> list[float]:
        """Return the losses of all steps."""
        self._recorder.read(0)
        return self.losses


class Plain:
    """A loop without DeepSpeed."""

    def __init__(self, world: World) -> None:
        model = build_model(world.bf16)
        self._parameters = list(model.parameters())
        self._masters = [nn.Parameter(p.detach().float()) for p in self._parameters] if world.bf16 else []
        self._optimiser = build_optimiser(model, OPTIONS, world.device)
        if world.bf16:
            copies = dict(zip(self._parameters, self._masters, strict=True))
            for group in self._optimiser.param_groups:
                group["params"] = [copies[parameter] for parameter in group["params"]]
        for group in self._optimiser.param_groups:
            group["fused"], group["foreach"] = True, False
        self._schedule = Schedule(self._optimiser, OPTIONS, SCHEDULE)
        self._model, self._ranks = model, world.size
        self._batch, self._number, self._rank = one_batch(), 0, world.rank
        self.losses: list[float] = []

    def step(self) -> None:
        """Do one step and read its loss."""
        batch, trained = self._batch, self._masters or self._parameters
        self._schedule.step_update(self._number)
        seed = step_seed(0, self._number, 0, self._rank)
        loss, _ = self._model(batch.views, batch.packed, batch.present, None, seed, self._number, SCHEDULE)
        loss.backward()
        for master, parameter in zip(self._masters, self._parameters, strict=False):
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
        if self._ranks > 1:
            _average([parameter.grad for parameter in trained], self._ranks)
        nn.utils.clip_grad_norm_(trained, OPTIONS.clip)
        self._optimiser.step()
        if self._masters:
            torch._foreach_copy_([p.data for p in self._parameters], [m.data for m in self._masters])
        for parameter in self._parameters:
            parameter.grad = None
        self._number += 1
        self.losses.append(float(loss.detach()))

    def finish(self) -> list[float]:
        """Return the losses of all steps."""
        return self.losses


def _average(gradients: list[Any], ranks: int) -> None:
    """Average gradients over ranks in one message, as ``DistributedDataParallel`` does a bucket; gloo lacks bf16."""
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(whole)
    parts = (whole / ranks).split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(like) for part, like in zip(parts, gradients, strict=True)])


def measure(bf16: bool) -> dict[str, Any]:
    """Compare losses and take times on this rank; return medians in seconds and the largest relative difference."""
    torch.set_num_threads(1)
    world = join_world(EngineConfig(device="cpu", precision="bf16" if bf16 else "fp32"))
    contenders: dict[str, Any] = {"plain": Plain(world), "DeepSpeed's own": Ours(world, 1 if bf16 else 0)}
    ours = "ours" if world.size == 1 else "DeepSpeed's own"
    if world.size == 1:
        contenders["ours"] = Ours(world, None)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(STEPS_TO_COMPARE + ROUNDS):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.process_time()
            contenders[name].step()
            seconds[name].append(time.process_time() - began)
    expected, losses = (contenders[name].finish()[:STEPS_TO_COMPARE] for name in ("plain", ours))
    # Over ranks our line is the mean, a plain loop's loss is the rank's own: compared on one rank only.
    apart = [abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)] if world.size == 1 else []
    tensors = len(list(contenders["plain"]._parameters))
    leave_world()
    return {
        "tensors": tensors,
        "first": apart[0] if apart else None,
        "apart": max(apart) if apart else None,
        "moved": abs(expected[-1] - expected[0]) / abs(expected[0]),
        "seconds": {name: statistics.median(values[STEPS_TO_COMPARE:]) for name, values in seconds.items()},
    }


def run_ranks(bf16: bool, ranks: int) -> dict[str, Any]:
    """Measure in processes of their own; return rank 0's result."""
    world = {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    if ranks > 1:
        world["MASTER_PORT"] = str(_free_port())
    processes = []
    for rank in range(ranks):
        own = {**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.training.host_step", "bf16" if bf16 else "fp32"]
        own["CUDA_VISIBLE_DEVICES"] = ""
        processes.append(subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True))
    output = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a rank of the host benchmark failed:\n{output[0][-2000:]}")
    result: dict[str, Any] = json.loads(output[0].splitlines()[-1])
    return result


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def host(bench: Bench, run: Callable[[bool, int], dict[str, Any]] = run_ranks) -> None:
    """Record host times and bars: fp32 (ZeRO 0) and bf16 (``engine.zero_stage=1``) on one rank; two ranks reported."""
    for bf16, name in ((False, "fp32, zero_stage 0"), (True, "bf16, zero_stage 1")):
        result = run(bf16, 1)
        seconds = result["seconds"]
        bench.figure(f"{name}: parameter tensors", result["tensors"], "")
        bench.figure(f"{name}: loss of the first step, relative difference to the plain loop", result["first"], "")
        bench.figure(f"{name}: losses of {STEPS_TO_COMPARE} steps, largest difference", result["apart"], "")
        bench.figure(f"{name}: change of the plain loop's loss in these steps", result["moved"], "")
        bound = 1e-2 if bf16 else 1e-4
        bench.gate(
            f"{name}: losses equal the plain loop's (first step 1e-6, {STEPS_TO_COMPARE} steps {bound:g})",
            result["first"] <= 1e-6 and result["apart"] <= bound and result["moved"] >= 10 * bound,
        )
        for contender, value in seconds.items():
            bench.figure(f"{name}, 1 rank: {contender}, host time a step", value * 1e3, "ms")
        own = seconds["DeepSpeed's own"] / seconds["plain"]
        bench.figure(f"{name}, 1 rank: DeepSpeed's own optimiser over the plain loop", own, "times")
        bench.bar(
            f"{name}, 1 rank: our step over the plain loop, host time", seconds["ours"] / seconds["plain"], "<=", 1.2
        )
    seconds = run(True, 2)["seconds"]
    for contender, value in seconds.items():
        bench.figure(f"bf16, zero_stage 1, 2 ranks: {contender}, host time a step", value * 1e3, "ms")
    ratio = seconds["DeepSpeed's own"] / seconds["plain"]
    bench.figure("bf16, zero_stage 1, 2 ranks: our step over the plain loop, host time", ratio, "times")


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1] == "bf16")))
