"""A run, built from its config: data, model, engine, position."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from timm.scheduler import CosineLRScheduler

from mrmfast import config as configs
from mrmfast.data.dataset import DataConfig, Dataset, open_dataset
from mrmfast.data.loader import Loader
from mrmfast.errors import UserError
from mrmfast.objectives import OBJECTIVES
from mrmfast.training import checkpoint
from mrmfast.training.checkpoint import TrainState
from mrmfast.training.engine import World, agreement, build_engine, join_world, zero_stage_in_use
from mrmfast.training.memory import example_inputs
from mrmfast.training.mfu import Utilisation, measure_utilisation
from mrmfast.training.micro_batch import settle_micro_batch
from mrmfast.training.optimiser import build_optimiser, build_schedule, reapply
from mrmfast.training.settings import TrainConfig, check


@dataclass
class Job:
    """A run, built and ready.

    Attributes
    ----------
    config : TrainConfig
    world : World
    dataset : Dataset
    engine : deepspeed.DeepSpeedEngine
    schedule : CosineLRScheduler
    loader : Loader
    state : TrainState
    steps : int
        Where the run ends.
    utilisation : Utilisation or None
        Turns samples per second into MFU, where the device's peak is known.
    lock : FileLock or None
        Held by rank 0 as long as the job lives.
    """

    config: TrainConfig
    world: World
    dataset: Dataset
    engine: Any
    schedule: CosineLRScheduler
    loader: Loader
    state: TrainState
    steps: int
    utilisation: Utilisation | None
    lock: FileLock | None


def build(config: TrainConfig, *, resume: bool) -> Job:
    """Open the data, build model and engine, and load the newest checkpoint if asked to.

    Raises
    ------
    UserError
        Anything in config, data or machine that a user can mend; the same on every rank.
    """
    check(config)
    folder = config.run.folder
    found = checkpoint.checkpoints(folder / "checkpoints")
    lock = _only_run(folder)
    if (folder / "config.yaml").exists() and not resume:
        raise UserError(f"{folder}: holds a run already; go on with --resume auto, or choose another run.name")
    recorded = TrainState()
    if resume and found:
        _same_model(config)
        recorded = checkpoint.read_state(found[-1])
    dataset = open_dataset(config.data)
    world = join_world(config.engine)
    config.micro_batch(world.size)  # what no device could run is refused before anything is built
    stage = zero_stage_in_use(config.engine.zero_stage, world.size, recorded.zero_stage)
    spec = dataset.genome_spec()
    torch.manual_seed(config.seed)
    model = OBJECTIVES[config.objective](config.model, config.mrm, config.data.image_size, spec)
    checkpoint.need_space(folder / "checkpoints", sum(p.numel() for p in model.parameters()), config.run.keep)
    model.set_grad_checkpointing(config.engine.checkpoint_activations)
    one_sample = example_inputs(spec, config.data.image_size, 1, torch.device("cpu"))
    utilisation = measure_utilisation(
        model, one_sample, world.device, bf16=world.bf16, ranks=world.size, peak=config.engine.peak_tflops
    )
    model.to(world.device, torch.bfloat16 if world.bf16 else None)
    config = settle_micro_batch(config, model, spec, world, stage=stage, recorded=recorded.micro_batch)
    micro_batch = config.micro_batch(world.size)
    loader = Loader(
        dataset,
        config.data,
        seed=config.seed,
        batch=config.batch_size,
        micro_batch=micro_batch,
        rank=world.rank,
        world=world.size,
        device=world.device,
        agree=agreement(world),
    )
    steps = config.total_steps(len(loader.plan))
    optimiser = build_optimiser(model, config.optimiser, world.device, flat_over=world.size if stage == 0 else None)
    schedule = build_schedule(optimiser, config.optimiser, steps)
    engine = build_engine(
        model,
        optimiser,
        world,
        zero_stage=stage,
        batch_size=config.batch_size,
        micro_batch=micro_batch,
        clip=config.optimiser.clip,
    )
    fingerprint = _fingerprint(dataset, config.data)
    state = TrainState(
        dataset=fingerprint,
        world=world.size,
        zero_stage=stage,
        precision="bf16" if world.bf16 else "fp32",
        micro_batch=micro_batch,
    )
    if resume and found:
        state = checkpoint.load(engine, found[-1], fingerprint, state.precision)
        state.micro_batch = micro_batch
        # Weight decay, betas and clipping come back with the state; those of this config count, as its rate does.
        reapply(optimiser, config.optimiser)
        if hasattr(engine.optimizer, "clip_grad"):
            engine.optimizer.clip_grad = config.optimiser.clip
    return Job(config, world, dataset, engine, schedule, loader, state, steps, utilisation, lock)


def _fingerprint(dataset: Dataset, config: DataConfig) -> str:
    """Identify the training set and the rules of its order, without naming anyone."""
    digest = hashlib.sha256(dataset.selected.tobytes())
    digest.update(f"{config.sampling}:{config.shuffle_window}".encode())
    if config.weights is not None:
        digest.update(Path(config.weights).read_bytes())
    for shard in dataset.manifest.shards:
        digest.update(shard.sha256.encode())
    spec = dataset.genome_spec()
    if spec is not None:
        digest.update(repr((spec.kinds, spec.groups, spec.group_names, spec.fill.tolist())).encode())
    return digest.hexdigest()


def _only_run(folder: Path) -> FileLock | None:
    """Let rank 0 take the run's folder for this process; the system lets go of it when the process ends, however."""
    if os.environ.get("RANK", "0") != "0":
        return None
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"{folder}: another process is training this run; wait for it, or choose another run.name"
        ) from None
    return lock


def _same_model(config: TrainConfig) -> None:
    """Refuse to resume with another model or objective than the run was started with."""
    path = config.run.folder / "config.yaml"
    before = configs.load(TrainConfig, path, [])
    for section in ("model", "mrm", "objective", "seed"):
        if getattr(before, section) != getattr(config, section):
            raise UserError(
                f"{path}: the run was started with another {section}; resume with the same, or choose another run.name"
            )
