"""Checkpoints: written aside by all ranks, renamed when whole, found again by step."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mrmfast.atomic import rename_directory
from mrmfast.errors import UserError

# JSON beside DeepSpeed's files rather than inside its client_state: it can be checked before anything is loaded.
STATE = "state.json"
PARTIAL = ".step-*.partial"
_NAME = re.compile(r"step-(\d{8})")


@dataclass
class TrainState:
    """What a run has to remember besides weights and optimiser.

    Dropout and matched pairs are seeded per step (see ``loop.step_seed``), so there is no generator to save.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    samples : int
        Samples consumed by all ranks: the position in the data stream (not what was prefetched).
    seconds : float
        Time spent training.
    dataset : str
        Fingerprint of the training set; a resumed run must have the same.
    world, zero_stage : int
        Ranks and ZeRO stage that wrote the checkpoint.
    precision : str
        "fp32" or "bf16": DeepSpeed names and lays out its files by it. Empty in checkpoints older than this field.
    micro_batch : int
        Samples per forward pass of a rank; 0 in checkpoints older than this field. A run with
        ``engine.micro_batch=auto`` keeps it.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    dataset: str = ""
    world: int = 1
    zero_stage: int = 0
    precision: str = ""
    micro_batch: int = 0


def checkpoints(folder: Path) -> list[Path]:
    """Return whole checkpoints, oldest first; folders still being written have another name."""
    return sorted(path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def need_space(folder: Path, parameters: int, keep: int) -> None:
    """Refuse to start a run whose checkpoints cannot fit.

    Parameters
    ----------
    folder : Path
        Where the checkpoints lie. The last `keep` there, and what killed saves left, are deleted for later ones.
    parameters : int
        A checkpoint holds weights, their float32 copy and two moments, 16 bytes a parameter, and the export 4.
    keep : int

    Raises
    ------
    UserError
        Names the folder, the bytes needed and the remedy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    makes_room = [*checkpoints(folder)[-keep:], *folder.glob(PARTIAL)]
    there = sum(file.stat().st_size for old in makes_room for file in old.iterdir())
    need, free = max(0, parameters * (16 * (keep + 1) + 4) - there), shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{folder}: no space for checkpoints, {need / 1e9:.1f} GB needed and {free / 1e9:.1f} GB free; "
            "free space, lower run.keep, or set run.dir"
        )


def save(engine: Any, folder: Path, state: TrainState, keep: int) -> None:
    """Save on every rank; rank 0 renames the folder into place and removes old ones.

    Raises
    ------
    UserError
        No space left.
    """
    final = folder / f"step-{state.step:08d}"
    aside = f".{final.name}.partial"
    first = torch.distributed.get_rank() == 0
    if first:
        for left in folder.glob(PARTIAL):  # of saves that were killed
            shutil.rmtree(left)
    torch.distributed.barrier()
    try:
        engine.save_checkpoint(str(folder), tag=aside, save_latest=False)
        if first:
            (folder / aside / STATE).write_text(json.dumps(asdict(state)), encoding="utf-8")
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError of its zip writer.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "PytorchStreamWriter" in str(error)
        if not full:
            raise
        raise UserError(
            f"{folder}: no space left for a checkpoint; free space, then resume with --resume auto"
        ) from error
    torch.distributed.barrier()
    if first:
        shutil.rmtree(final, ignore_errors=True)
        rename_directory(folder / aside, final)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    torch.distributed.barrier()


_REMEDY = "remove this checkpoint and resume again"


def read_state(checkpoint: Path) -> TrainState:
    """Read the state of a checkpoint before anything is built.

    Raises
    ------
    UserError
        It is damaged.
    """
    try:
        return TrainState(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError) as error:  # JSON's and UTF-8's errors are ValueErrors
        raise UserError(f"{checkpoint / STATE}: missing or damaged; {_REMEDY}") from error


def load(engine: Any, checkpoint: Path, dataset: str, precision: str) -> TrainState:
    """Load a complete checkpoint into the engine of a run in `precision`.

    Raises
    ------
    UserError
        It belongs to another dataset, number of ranks or precision, is damaged, or does not fit the model.
    """
    state, remedy = read_state(checkpoint), _REMEDY
    if state.dataset != dataset:
        raise UserError(
            f"{checkpoint}: was trained on another dataset or split; resume with the same data, or start again"
        )
    world = torch.distributed.get_world_size()
    if state.world != world and state.zero_stage > 0:
        raise UserError(
            f"{checkpoint}: was written by {state.world} ranks, this run has {world}; "
            "ZeRO stages 1 to 3 need the same number"
        )
    stage = engine.zero_optimization_stage()
    # Stages 1 and 2 lay their parts out alike; the others do not.
    if stage != state.zero_stage and {stage, state.zero_stage} != {1, 2}:
        raise UserError(
            f"{checkpoint}: was written with engine.zero_stage={state.zero_stage}, which stage {stage} cannot read; "
            f"resume with engine.zero_stage={state.zero_stage}"
        )
    if state.precision not in ("", precision):
        raise UserError(
            f"{checkpoint}: was written in {state.precision}, this run is {precision}; "
            f"resume with engine.precision={state.precision}, or start again with another run.name"
        )
    try:
        with tensors_only():
            loaded, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        if loaded is None:
            raise FileNotFoundError(checkpoint)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{checkpoint}: holds something else than tensors and was not loaded; is it one of ours?"
        ) from error
    except (FileNotFoundError, AssertionError) as error:  # DeepSpeed asserts that the weights are there
        raise UserError(f"{checkpoint}: a file is missing; {remedy}") from error
    except (RuntimeError, KeyError, EOFError) as error:
        if isinstance(error, EOFError) or "PytorchStreamReader" in str(error):  # torch's reader of a file cut short
            raise UserError(f"{checkpoint}: a file is damaged; {remedy}") from error
        raise UserError(f"{checkpoint}: does not fit this config ({' '.join(str(error).split())[:160]})") from error
    state.world, state.zero_stage, state.precision = world, stage, precision
    return state


@contextmanager
def tensors_only() -> Iterator[None]:
    """Keep torch.load from running code out of a checkpoint: DeepSpeed asks for full unpickling."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before
