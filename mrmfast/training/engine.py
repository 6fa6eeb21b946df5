"""DeepSpeed: process group, device, precision, ZeRO."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from pydantic import AllowInfNan

from mrmfast.config import PositiveInt
from mrmfast.errors import UserError
from mrmfast.training.compile import CompileMode
from mrmfast.training.flat_adamw import FlatAdamW
from mrmfast.training.rendezvous import RollCall, explain_rendezvous, prepare_environment

ZeROStage = Annotated[int, Ge(0), Le(3)]


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
        DeepSpeed ZeRO 0 to 3. A single rank runs without ZeRO.
    micro_batch : int or "auto", optional
        Largest number of samples per forward pass of a rank (the largest divisor of its share up to that is taken;
        the rest of the batch is accumulated). By default the rank's whole share. "auto" takes the largest that fits
        the memory, when the run starts; a resumed run keeps it. The batch of a step and the order of samples do not
        depend on it. What an objective compares within a pass does: MRM's relation matching and the mean over observed
        genome values, the negatives of SimCLR. Set a number where two runs must be compared to the last digit.
    activation_checkpointing : bool
        Keep only the inputs of blocks for the backward pass and run them again there: about a third more arithmetic
        for a fraction of the memory (``python -m benchmarks.training.cost`` measures it).
    compile : {"off", "blocks", "whole"}
        What ``torch.compile`` takes: nothing, each block, or the whole training graph (not under ZeRO 3). Compiling
        takes minutes in a first run, seconds in later ones of the same shapes.
    peak_tflops : float, optional
        Peak of one device in TFLOP/s, of which the log gives the used share (MFU). By default from a table of cards
        by name (``mrmfast/training/mfu.py``), in bf16; other devices have no MFU.
    rank_timeout : float
        Seconds for which ranks wait for each other: at the start, and in a step. Then the run ends and names the ranks
        that do not answer. More than ``data.fetch.deadline``, so that a rank without data can say it first.
    """

    device: Literal["auto", "cuda", "cpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    zero_stage: ZeROStage = 1
    micro_batch: PositiveInt | Literal["auto"] | None = None
    activation_checkpointing: bool = False
    compile: CompileMode = "off"
    peak_tflops: Annotated[float, AllowInfNan(False), Ge(1e-3), Le(1e9)] | None = None
    rank_timeout: Annotated[float, AllowInfNan(False), Ge(1), Le(86400)] = 400.0


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
        A GPU, or bf16 on it, is asked for and not there; the ranks do not meet.
    """
    global _roll_call
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device=cuda: no CUDA GPU is visible; check nvidia-smi, or run with engine.device=cpu")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    prepare_environment()
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        if config.precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise UserError("engine.precision=bf16: this GPU lacks bf16; use engine.precision=fp32")
    else:
        # DeepSpeed picks its accelerator when it is first imported.
        os.environ["DS_ACCELERATOR"] = "cpu"
        ranks_here = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if "OMP_NUM_THREADS" not in os.environ:  # the cores of this process, which a container or a scheduler limits
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    import deepspeed

    # Compiling DeepSpeed's shared-memory op takes a compiler and most of a minute, and only inference uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    limit = timedelta(seconds=config.rank_timeout)
    # DeepSpeed makes groups of its own without a limit of their own: theirs is this default, half an hour for gloo.
    groups = torch.distributed.distributed_c10d
    groups.default_pg_timeout = groups.default_pg_nccl_timeout = limit
    try:
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False, timeout=limit)
    except (torch.distributed.DistError, RuntimeError, ValueError) as error:
        raise explain_rendezvous(error, config.rank_timeout) from error
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    if size > 1:
        _roll_call = RollCall(_default_store(), rank, size)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and on_gpu and torch.cuda.is_bf16_supported())
    return World(rank, size, device, bf16)


_roll_call: RollCall | None = None


def silent_ranks() -> list[int]:
    """Return the ranks of this world that do not answer."""
    return _roll_call.silent_ranks() if _roll_call is not None else []


def _default_store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()


def prints_error(message: str) -> bool:
    """Return whether this rank prints an error: the first rank with this message does.

    Ranks use the store of the process group, not a collective, because other ranks may wait in another collective.
    Before the group exists, the first rank of each node prints.
    """
    if not torch.distributed.is_initialized():
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        return int(_default_store().add(f"mrmfast/said/{hashlib.sha256(message.encode()).hexdigest()}", 1)) == 1
    except RuntimeError:  # rank 0, which holds the store, has ended with its own error
        return False


def agreement(world: World) -> Callable[[frozenset[int]], frozenset[int]]:
    """Return a function that unites the samples of all ranks; every rank calls it the same number of times.

    The function uses a separate gloo group, so that it does not wait for the GPU.
    """
    if world.size == 1:
        return lambda unreadable: unreadable
    group: Any = torch.distributed.new_group(backend="gloo")

    def agree(unreadable: frozenset[int]) -> frozenset[int]:
        count = torch.tensor([len(unreadable)])
        torch.distributed.all_reduce(count, group=group)
        if not count:
            return unreadable
        gathered: list[Any] = [None] * world.size
        torch.distributed.all_gather_object(gathered, unreadable, group=group)
        return frozenset().union(*gathered)

    return agree


def zero_stage_in_use(configured: int, ranks: int, recorded: int) -> int:
    """Return the ZeRO stage of a run: 0 on one rank, unless it resumes a checkpoint that one rank wrote with ZeRO."""
    return 0 if ranks == 1 and recorded == 0 else configured


def leave_world() -> None:
    """Destroy the process group, if there is one; without it PyTorch warns at every exit."""
    global _roll_call
    if _roll_call is not None:
        _roll_call.close()
        _roll_call = None
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def initialise_deepspeed(
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

    With :class:`FlatAdamW` DeepSpeed runs forward and backward, and keeps the checkpoints. The optimiser itself
    averages and clips the gradients, and holds the float32 copies in bf16.

    Returns
    -------
    deepspeed.DeepSpeedEngine
    """
    import deepspeed

    flat = isinstance(optimiser, FlatAdamW)
    settings = {
        "train_batch_size": batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": batch_size // (micro_batch * world.size),
        "gradient_clipping": 0.0 if flat else clip,
        "bf16": {"enabled": world.bf16 and not flat},
        "zero_optimization": {"stage": zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,  # the loop has its own progress bar
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimiser, config=settings)
    if zero_stage in (1, 2) and world.bf16:
        # The norm of the gradients, computed anyway, shows whether all are finite; ZeRO skips the step otherwise.
        # DeepSpeed's own check would read every gradient, with two calls per parameter.
        engine.optimizer.check_overflow = lambda partition_gradients=True: None
    if isinstance(optimiser, FlatAdamW):
        engine.enable_backward_allreduce = False
        engine.zero_grad = optimiser.zero_grad  # DeepSpeed's searches the module tree for its parameters, every step
    return engine


def whole_parameters(engine: Any, module: torch.nn.Module, world: World) -> dict[str, torch.Tensor]:
    """Return the parameters of a part of the model by name, on rank 0, in float32 on the CPU; call on every rank.

    In bf16 these are the float32 copies that the optimiser moves, not the rounded ones that the model computes with.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    optimiser = engine.optimizer
    masters = optimiser.masters() if isinstance(optimiser, FlatAdamW) else {}
    whole: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        master = masters.get(parameter)
        if master is None:
            # None where DeepSpeed keeps no copy: without ZeRO in fp32 the parameter is whole and exact itself.
            master = safe_get_full_fp32_param(parameter)
        if world.rank == 0:
            whole[name] = (parameter if master is None else master).detach().float().cpu()
    return whole
