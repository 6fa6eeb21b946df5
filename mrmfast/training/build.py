"""The parts of a run, built from its config: data, model, engine, position."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mrmfast import config as configs
from mrmfast.atomic import sweep_partials
from mrmfast.batch import GenomeSpec
from mrmfast.data.dataset import DataConfig, Dataset, open_dataset
from mrmfast.data.loader import Loader
from mrmfast.errors import SharedError, UserError
from mrmfast.objectives import build_objective, load_objective
from mrmfast.objectives.base import TrainableModule
from mrmfast.training import checkpoint
from mrmfast.training.checkpoint import TrainState
from mrmfast.training.compile import compile_model
from mrmfast.training.engine import World, agreement, initialise_deepspeed, join_world, zero_stage_in_use
from mrmfast.training.memory import example_inputs
from mrmfast.training.mfu import Utilisation, measure_utilisation
from mrmfast.training.micro_batch import need_memory, settle_micro_batch
from mrmfast.training.optimiser import Schedule, build_optimiser
from mrmfast.training.settings import TrainConfig


@dataclass
class Job:
    """A complete run.

    Attributes
    ----------
    config : TrainConfig
    world : World
    dataset : Dataset
    engine : deepspeed.DeepSpeedEngine
    schedule : Schedule
    loader : Loader
    state : TrainState
    steps : int
        Number of optimiser steps of the run.
    utilisation : Utilisation or None
        Converts samples per second to MFU; None if the peak of the device is unknown.
    lock : FileLock or None
        Lock on the run's folder, which rank 0 holds for the life of the job.
    """

    config: TrainConfig
    world: World
    dataset: Dataset
    engine: Any
    schedule: Schedule
    loader: Loader
    state: TrainState
    steps: int
    utilisation: Utilisation | None
    lock: FileLock | None


def build(config: TrainConfig, *, resume: bool) -> Job:
    """Build a run in four steps: data, model, engine, position.

    Raises
    ------
    UserError
        An error in config, data or machine that a user can fix; every rank raises the same error.
    """
    folder = config.run.folder
    lock = _lock_run(folder)
    resumes = _resumes(config, resume)
    if lock is not None:
        sweep_leftovers(folder)
    dataset = build_data(config)
    world = join_world(config.engine)
    saved = _choose_checkpoint(folder, world) if resumes else None
    recorded = TrainState() if saved is None else checkpoint.read_state(saved)
    config.micro_batch(world.size)  # impossible batch sizes are refused before anything is built
    stage = zero_stage_in_use(config.engine.zero_stage, world.size, recorded.zero_stage)
    model, utilisation = build_model(config, dataset, world)
    spec = dataset.genome_spec()
    config = settle_micro_batch(config, model, spec, world, stage=stage, recorded=recorded.micro_batch)
    loader = build_loader(config, dataset, world)
    steps = config.total_steps(len(loader.sampler))
    compile_model(model, config.engine.compile, zero_stage=stage)
    engine, schedule = build_engine(config, model, world, stage=stage, steps=steps)
    state = TrainState(
        dataset=_fingerprint(dataset, config.data),
        world=world.size,
        zero_stage=stage,
        precision="bf16" if world.bf16 else "fp32",
        micro_batch=config.micro_batch(world.size),
    )
    if saved is not None:
        state = resume_position(config, engine, schedule, saved, state)
    return Job(config, world, dataset, engine, schedule, loader, state, steps, utilisation, lock)


def build_data(config: TrainConfig) -> Dataset:
    """Open the dataset. If the objective does not use genetics, they only select images."""
    dataset = open_dataset(config.data)
    return dataset.images_alone() if load_objective(config.objective.name).genetics == "unused" else dataset


def build_model(config: TrainConfig, dataset: Dataset, world: World) -> tuple[TrainableModule, Utilisation | None]:
    """Build the objective on the device, in the run's precision, and count its floating-point operations."""
    spec = dataset.genome_spec()
    parameters = count_parameters(config, spec)
    need_memory(parameters, world.device)
    checkpoint.need_space(config.run.folder / "checkpoints", parameters, config.run.keep)
    torch.manual_seed(config.seed)
    model = build_objective(config.objective, config.model, config.data.image_size, spec)
    model.set_activation_checkpointing(config.engine.activation_checkpointing)
    one_sample = example_inputs(model, spec, 1, torch.device("cpu"))
    utilisation = measure_utilisation(
        model, one_sample, world.device, bf16=world.bf16, ranks=world.size, peak=config.engine.peak_tflops
    )
    model.to(world.device, torch.bfloat16 if world.bf16 else None)
    return model, utilisation


def count_parameters(config: TrainConfig, spec: GenomeSpec | None) -> int:
    """Count the parameters of a model before it takes memory. A new objective must be built on the meta device too."""
    with torch.device("meta"):
        model = build_objective(config.objective, config.model, config.data.image_size, spec)
    return sum(p.numel() for p in model.parameters())


def build_loader(config: TrainConfig, dataset: Dataset, world: World) -> Loader:
    """Build the loader of this rank, with the views that the objective asks for."""
    return Loader(
        dataset,
        config.data,
        seed=config.seed,
        batch=config.batch_size,
        micro_batch=config.micro_batch(world.size),
        rank=world.rank,
        world=world.size,
        device=world.device,
        views=load_objective(config.objective.name).views(config.objective),
        agree=agreement(world),
    )


def build_engine(
    config: TrainConfig, model: TrainableModule, world: World, *, stage: int, steps: int
) -> tuple[Any, Schedule]:
    """Build the optimiser, its schedule and the DeepSpeed engine."""
    flat_over = world.size if stage == 0 else None
    optimiser = build_optimiser(model, config.optimiser, world.device, flat_over=flat_over)
    schedule = Schedule(optimiser, config.optimiser, steps)
    engine = initialise_deepspeed(
        model,
        optimiser,
        world,
        zero_stage=stage,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch(world.size),
        clip=config.optimiser.clip,
    )
    return engine, schedule


def resume_position(config: TrainConfig, engine: Any, schedule: Schedule, saved: Path, fresh: TrainState) -> TrainState:
    """Load weights, optimiser and position of a checkpoint.

    Parameters
    ----------
    config : TrainConfig
    engine : deepspeed.DeepSpeedEngine
    schedule : Schedule
    saved : Path
        Folder of the checkpoint.
    fresh : TrainState
        State of a new run; dataset and precision of the checkpoint must equal it.
    """
    state = checkpoint.load(engine, saved, fresh.dataset, fresh.precision, verified=True)
    state.micro_batch = fresh.micro_batch
    # The checkpoint restores weight decay, betas and clipping. The values of this config replace them.
    schedule.step_update(state.step)
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = config.optimiser.clip
    return state


def _resumes(config: TrainConfig, resume: bool) -> bool:
    """Return whether the run has a checkpoint to resume from; refuse to start a run that exists already."""
    folder = config.run.folder
    if not resume:
        if (folder / "config.yaml").exists():
            raise UserError(f"{folder}: holds a run already; resume it with --resume auto, or choose another run.name")
        return False
    if not checkpoint.checkpoints(folder / "checkpoints"):
        return False
    _require_same_model(config)
    return True


def _choose_checkpoint(folder: Path, world: World) -> Path | None:
    """Return the latest intact checkpoint; rank 0 verifies the files for all ranks, and prints the warnings.

    Raises
    ------
    SharedError
        All checkpoints are damaged.
    """
    choice: list[Any] = [None, None]
    if world.rank == 0:
        try:
            saved, warnings = checkpoint.choose(folder / "checkpoints")
            choice[0] = saved
            for warning in warnings:
                print(f"mrmfast: warning: {warning}", file=sys.stderr)
        except UserError as error:
            choice[1] = str(error)
    if world.size > 1:
        torch.distributed.broadcast_object_list(choice, src=0)
    if choice[1] is not None:
        raise SharedError(choice[1])
    return choice[0]


def sweep_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a run's folder, whose lock this process holds."""
    for part in (folder, folder / "figures", folder / "checkpoints"):
        sweep_partials(part)
    for aside in (folder / "checkpoints").glob(checkpoint.PARTIAL):
        shutil.rmtree(aside, ignore_errors=True)


def _fingerprint(dataset: Dataset, config: DataConfig) -> str:
    """Return a digest of the training set and of the settings of its order; the digest contains no ids."""
    digest = hashlib.sha256(dataset.selected.tobytes())
    digest.update(f"{config.sampling}:{config.shuffle_window}".encode())
    if config.weights is not None:
        digest.update(Path(config.weights).read_bytes())
    for shard in dataset.manifest.shards:
        digest.update(shard.sha256.encode())
    spec = dataset.genome_spec()
    if spec is not None:
        # Plain tuples, as in the digests of earlier checkpoints.
        modalities = tuple(tuple(modality) for modality in spec.modalities)
        digest.update(repr((modalities, spec.groups, spec.group_names, spec.fill.tolist())).encode())
    if dataset.targets is not None:
        digest.update(dataset.targets.digest().encode())
    return digest.hexdigest()


def _lock_run(folder: Path) -> FileLock | None:
    """Lock the run's folder on rank 0; the kernel releases the lock when the process ends."""
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


def _require_same_model(config: TrainConfig) -> None:
    """Refuse to resume a run with another model, objective or seed."""
    path = config.run.folder / "config.yaml"
    recorded = configs.load(TrainConfig, path, [])
    for section in ("model", "objective", "seed"):
        if getattr(recorded, section) != getattr(config, section):
            raise UserError(
                f"{path}: the run was started with another {section}; resume with the same, or choose another run.name"
            )
