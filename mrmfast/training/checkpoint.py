"""Checkpoints: written aside by all ranks, sealed with digests, renamed when complete, found again by step.

``checksums.json`` in the folder holds the SHA-256 of every file, ``state.json`` included, and the name of the folder is
compared with the step in ``state.json``. A resumed run verifies the latest checkpoint before anything is built. If it
is damaged, the run resumes from the latest intact one, with a warning that names the damaged file.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from mrmfast.atomic import rename_directory
from mrmfast.errors import PARSE_ERRORS, UserError
from mrmfast.formats import checksums
from mrmfast.training.checkpoint_state import (
    REMEDY,
    STATE,
    Precision,
    TrainState,
    checkpoints,
    choose,
    damage,
    read_state,
)

__all__ = [
    "PARTIAL",
    "STATE",
    "TrainState",
    "checkpoints",
    "choose",
    "damage",
    "load",
    "need_space",
    "read_state",
    "save",
]

PARTIAL = ".step-*.partial"
# Words of torch's zip writer, whose errors mean a failed write. Versions differ.
_ZIP_WRITER = ("PytorchStreamWriter", "inline_container", "iostream")
LEAST_SPACE = 1 << 20  # bytes; with less, any failed write is taken for a full disk


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
        torch.distributed.barrier()
        if first:
            (folder / aside / STATE).write_text(json.dumps({**asdict(state), "sealed": True}), encoding="utf-8")
            checksums.seal(folder / aside)
    except (OSError, RuntimeError) as error:
        if not _is_full(error, folder):
            raise
        shutil.rmtree(folder / aside, ignore_errors=True)
        raise UserError(
            f"{folder}: no space left for a checkpoint; free space, then resume with --resume auto"
        ) from error
    if first:
        shutil.rmtree(final, ignore_errors=True)
        rename_directory(folder / aside, final)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    torch.distributed.barrier()


def _is_full(error: OSError | RuntimeError, folder: Path) -> bool:
    """Tell whether a save failed for lack of space; torch reports it as a RuntimeError of its zip writer."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    return any(word in text for word in _ZIP_WRITER) or shutil.disk_usage(folder).free < LEAST_SPACE


def load(engine: Any, checkpoint: Path, dataset: str, precision: str, *, verified: bool = False) -> TrainState:
    """Load a complete checkpoint into the engine of a run in `precision`.

    Parameters
    ----------
    engine : deepspeed.DeepSpeedEngine
    checkpoint : Path
    dataset : str
        Fingerprint of the training set.
    precision : {"fp32", "bf16"}
    verified : bool
        :func:`choose` has compared the files with their digests.

    Raises
    ------
    UserError
        It belongs to another dataset, number of ranks or precision, is damaged, or does not fit the model.
    """
    state = read_state(checkpoint)
    if not verified and (problem := damage(checkpoint)) is not None:
        raise UserError(f"{problem}; {REMEDY}")
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
    _load_tensors(engine, checkpoint, state.sealed)
    state.world, state.zero_stage, state.precision = world, stage, cast(Precision, precision)
    return state


def _load_tensors(engine: Any, checkpoint: Path, sealed: bool) -> None:
    """Load DeepSpeed's files, and turn its errors into one line."""
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
        raise UserError(f"{checkpoint}: a file is missing; {REMEDY}") from error
    except (OSError, *PARSE_ERRORS) as error:
        if isinstance(error, MemoryError):
            raise
        unfit = isinstance(error, (RuntimeError, KeyError)) and "PytorchStreamReader" not in str(error)
        if unfit or (sealed and not isinstance(error, OSError)):  # sealed files are as they were written
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{checkpoint}: does not fit this config ({reason})") from error
        raise UserError(f"{checkpoint}: a file is damaged; {REMEDY}") from error


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
