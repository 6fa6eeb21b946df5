"""DeepSpeed: process group, device, precision, ZeRO."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from mrmfast.errors import UserError


@dataclass(frozen=True)
class EngineConfig:
    """How training runs, not what is computed.

    Attributes
    ----------
    device : {"auto", "cuda", "cpu"}
        auto takes the GPU where there is one.
    precision : {"auto", "fp32", "bf16"}
        auto is bf16 on GPUs that have it, fp32 elsewhere.
    zero_stage : int
        DeepSpeed ZeRO 0 to 3.
    micro_batch : int, optional
        Largest number of samples per forward pass of a rank (the largest divisor of its share up to that is taken;
        the rest of the batch is accumulated). By default the rank's whole share.
    checkpoint_activations : bool
        Keep only the inputs of blocks for the backward pass and run them again there: about a third more arithmetic
        for a fraction of the memory (``python -m benchmarks.model`` says how much).
    """

    device: Literal["auto", "cuda", "cpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    zero_stage: int = 1
    micro_batch: int | None = None
    checkpoint_activations: bool = False


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device
    bf16: bool


def join_world(config: EngineConfig) -> World:
    """Pick device and precision, and start the process group.

    Raises
    ------
    UserError
        A GPU, or bf16 on it, is asked for and not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device=cuda: no CUDA GPU is visible; check nvidia-smi, or run with engine.device=cpu")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        if config.precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise UserError("engine.precision=bf16: this GPU lacks bf16; use engine.precision=fp32")
    else:
        # DeepSpeed picks its accelerator when it is first imported.
        os.environ["DS_ACCELERATOR"] = "cpu"
        ranks_here = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_here))
    # Started by plain python: a world of one.
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    import deepspeed

    # Compiling DeepSpeed's shared-memory op takes a compiler and most of a minute, and only inference uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    bf16 = config.precision == "bf16" or (config.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported())
    return World(rank, size, device, bf16)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def agreement(world: World) -> Callable[[frozenset[int]], frozenset[int]]:
    """Return a function that tells every rank what any rank has found; called by all ranks the same number of times.

    Over a gloo group of its own, so that asking does not wait for the GPU.
    """
    if world.size == 1:
        return lambda found: found
    group: Any = torch.distributed.new_group(backend="gloo")

    def agree(found: frozenset[int]) -> frozenset[int]:
        count = torch.tensor([len(found)])
        torch.distributed.all_reduce(count, group=group)
        if not count:
            return found
        everyone: list[Any] = [None] * world.size
        torch.distributed.all_gather_object(everyone, found, group=group)
        return frozenset().union(*everyone)

    return agree


def build_engine(
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    world: World,
    *,
    zero_stage: int,
    batch_size: int,
    micro_batch: int,
    clip: float,
) -> Any:
    """Wrap a model and its optimiser in a DeepSpeed engine.

    Returns
    -------
    deepspeed.DeepSpeedEngine
    """
    import deepspeed

    settings = {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": batch_size // (micro_batch * world.size),
        "gradient_clipping": clip,
        "bf16": {"enabled": world.bf16},
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,  # the loop has its own progress bar
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimiser, config=settings)
    return engine


@contextmanager
def whole_parameters(engine: Any, module: torch.nn.Module) -> Iterator[dict[str, torch.nn.Parameter]]:
    """Give the parameters of a part of the model by name, gathered from all ranks under ZeRO-3; call on every rank."""
    import deepspeed

    parameters = dict(module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=engine.zero_optimization_stage() == 3):
        yield parameters
