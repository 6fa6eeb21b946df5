"""``engine.micro_batch=auto``: the largest micro-batch whose activations fit the device.

The account of :mod:`mrmfast.training.memory` gives a first size. On a GPU a trial pass of that size corrects it once by
the measured peak. The size is settled before training starts and written to the checkpoint, so a resumed run keeps it:
an objective may compare the samples of a pass, and another size would be another loss.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from mrmfast.batch import GenomeSpec
from mrmfast.errors import UserError
from mrmfast.objectives.base import TrainableModule
from mrmfast.objectives.collectives import alone
from mrmfast.training.engine import World
from mrmfast.training.memory import example_inputs, kept_bytes, state_bytes
from mrmfast.training.settings import TrainConfig

GPU_SHARE = 0.92  # of the free memory; the rest is for fragments, communication and the decoder of the loader
CPU_SHARE = 0.5  # of the available memory, which other processes and the page cache use too
TEMPORARIES = 1.3  # peak of a backward pass over what the forward pass keeps, before it has been measured

Measure = Callable[[int], float]


@dataclass(frozen=True)
class Budget:
    """Memory of a rank in bytes.

    Attributes
    ----------
    available : float
        For activations, gradients and optimiser states.
    gradients : float
        Gradients that a backward pass leaves behind.
    states : float
        Optimiser states and buffers that come after it.
    """

    available: float
    gradients: float
    states: float

    @property
    def activations(self) -> float:
        """What is left for activations."""
        return self.available - self.gradients - self.states


def fit_micro_batch(share: int, budget: Budget, kept: Callable[[int], int], measure: Measure | None) -> int:
    """Return the largest micro-batch that fits, at least 1 and at most `share`.

    Parameters
    ----------
    share : int
        Samples of a rank per optimiser step.
    budget : Budget
    kept : callable
        Number of samples -> bytes that autograd keeps.
    measure : callable, optional
        Number of samples -> measured peak in bytes of a forward and backward pass, gradients included; raises
        ``torch.OutOfMemoryError``.

    Raises
    ------
    UserError
        Not even one sample fits.
    """
    single, double = kept(1), kept(2)  # bytes kept by a pass of one sample, of two
    per_sample, constant = max(1, double - single), max(0, 2 * single - double)
    size = int((budget.activations / TEMPORARIES - constant) // per_sample)
    if measure is not None:
        size = _corrected(min(max(size, 1), share), budget, constant, measure)
    if size < 1:
        raise UserError(
            f"engine.micro_batch=auto: one sample needs {(single * TEMPORARIES) / 1e9:.1f} GB beside "
            f"{(budget.gradients + budget.states) / 1e9:.1f} GB of states, {budget.available / 1e9:.1f} GB are free; "
            "set engine.activation_checkpointing=true, or raise engine.zero_stage with more ranks"
        )
    return min(size, share)


def _corrected(size: int, budget: Budget, constant: int, measure: Measure) -> int:
    """Return the size that the measured peak of a trial pass allows; 0 where even one sample is too much."""
    while True:
        try:
            peak = measure(size)
            break
        except torch.OutOfMemoryError:
            size //= 2
            if size == 0:
                return 0
    per_sample = max(1.0, (peak - budget.gradients - constant) / size)
    return int((budget.activations - constant) // per_sample)


def available_bytes(device: torch.device, local_ranks: int) -> float:
    """Return the memory that a rank may fill: of its GPU, or its share of the machine's or the container's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return GPU_SHARE * (free + own)
    return CPU_SHARE * min(psutil.virtual_memory().available, _container_bytes()) / local_ranks


def _container_bytes(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return what a memory limit of control groups (v2, v1) leaves; infinite without one."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            text = (root / limit).read_text().strip()
            if text != "max":
                return max(0.0, float(text) - float((root / usage).read_text()))
        except (OSError, ValueError):
            continue
    return float("inf")


def _local_ranks() -> int:
    return int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))


def need_memory(parameters: int, device: torch.device) -> None:
    """Refuse a model that the machine cannot hold, before it is built.

    Parameters
    ----------
    parameters : int
        Each takes 4 bytes of the machine while the model is built; without a GPU 16, with gradient and two moments.
    device : torch.device

    Raises
    ------
    UserError
    """
    need = parameters * (4 if device.type == "cuda" else 16)
    free = available_bytes(torch.device("cpu"), _local_ranks())
    if need > free:
        raise UserError(
            f"the model has {parameters / 1e9:.3g} G parameters and needs {need / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; take a smaller model.arch, model.depth or decoder"
        )


def settle_micro_batch(
    config: TrainConfig, model: TrainableModule, spec: GenomeSpec | None, world: World, *, stage: int, recorded: int
) -> TrainConfig:
    """Replace ``engine.micro_batch=auto`` by a number; every rank gets the same.

    Parameters
    ----------
    config : TrainConfig
    model : TrainableModule
        On the device, in the precision of the run.
    spec : GenomeSpec or None
    world : World
    stage : int
        ZeRO stage in use.
    recorded : int
        Micro-batch of the checkpoint that the run resumes from; 0 where there is none.

    Raises
    ------
    UserError
        Not even one sample fits.
    """
    if config.engine.micro_batch != "auto":
        return config
    share = max(1, config.batch_size // world.size)
    size = min(recorded, share) or _largest(config, model, spec, world, stage, share)
    return replace(config, engine=replace(config.engine, micro_batch=size))


def _largest(
    config: TrainConfig, model: TrainableModule, spec: GenomeSpec | None, world: World, stage: int, share: int
) -> int:
    parts = state_bytes(sum(p.numel() for p in model.parameters()), world.bf16, stage, world.size)
    gradients, weights = parts.pop("gradients"), parts.pop("weights")
    del weights  # on the device already
    budget = Budget(available_bytes(world.device, _local_ranks()), gradients, sum(parts.values()))

    def inputs(samples: int) -> Any:
        return example_inputs(model, spec, samples, world.device)

    def peak(samples: int) -> float:
        try:
            return _trial_peak(model, inputs(samples), world.device)
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    measure = peak if world.device.type == "cuda" else None
    failure = None
    try:
        size = fit_micro_batch(share, budget, lambda samples: kept_bytes(model, inputs(samples)), measure)
    except UserError as error:
        size, failure = 0, error
    if world.size > 1:
        smallest = torch.tensor(size, device=world.device)
        torch.distributed.all_reduce(smallest, op=torch.distributed.ReduceOp.MIN)
        size = int(smallest)
    if size == 0:
        raise failure or UserError("engine.micro_batch=auto: one sample does not fit the memory of another rank")
    return size


def _trial_peak(model: TrainableModule, inputs: Any, device: torch.device) -> float:
    """Return the peak of bytes that a forward and backward pass adds to what is allocated."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with alone():
        model(*inputs)[0].backward()
    torch.cuda.synchronize(device)
    return float(torch.cuda.max_memory_allocated(device) - before)
