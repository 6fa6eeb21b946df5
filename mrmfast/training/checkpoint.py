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
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Ge, Le
from pydantic import ConfigDict, FiniteFloat, TypeAdapter

from mrmfast.atomic import rename_directory
from mrmfast.errors import PARSE_ERRORS, UserError
from mrmfast.formats import checksums

# JSON beside DeepSpeed's files rather than inside its client_state: it can be checked before anything is loaded.
STATE = "state.json"
PARTIAL = ".step-*.partial"
# Words of torch's zip writer, whose errors mean a failed write. Versions differ.
_ZIP_WRITER = ("PytorchStreamWriter", "inline_container", "iostream")
LEAST_SPACE = 1 << 20  # bytes; with less, any failed write is taken for a full disk
_NAME = re.compile(r"step-(\d{8})")


Count = Annotated[int, Ge(0), Le(2**63 - 1)]
Precision = Literal["", "fp32", "bf16"]


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
    sealed : bool
        The folder has a ``checksums.json``. False in checkpoints older than this field.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # "5" is no step

    step: Count = 0
    samples: Count = 0
    seconds: Annotated[FiniteFloat, Ge(0)] = 0.0
    dataset: str = ""
    world: Annotated[int, Ge(1)] = 1
    zero_stage: Annotated[int, Ge(0), Le(3)] = 0
    precision: Precision = ""
    micro_batch: Count = 0
    sealed: bool = False


_STATE = TypeAdapter(TrainState)


def checkpoints(folder: Path) -> list[Path]:
    """Return complete checkpoints, oldest first; folders still being written have another name."""
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


_REMEDY = "remove this checkpoint and resume again"


def read_state(checkpoint: Path) -> TrainState:
    """Read the state of a checkpoint before anything is built.

    Raises
    ------
    UserError
        It is damaged, or belongs to another step than its folder.
    """
    path = checkpoint / STATE
    try:
        state = _STATE.validate_json(path.read_bytes())
    except (OSError, *PARSE_ERRORS) as error:  # pydantic's errors are ValueErrors
        raise UserError(f"{path}: missing or damaged; {_REMEDY}") from error
    name = _NAME.fullmatch(checkpoint.name)
    if name is None or int(name[1]) != state.step or state.samples < state.step:
        raise UserError(
            f"{path}: damaged (step {state.step}, {state.samples} samples, in a folder called {checkpoint.name}); "
            + _REMEDY
        )
    return state


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint: one line that begins with the file's name, or None.

    Every file is hashed; nothing is loaded. A checkpoint of an earlier version has no digests: only its state is read.
    Further files count only if they hold tensors: DeepSpeed looks for those by pattern.
    """
    try:
        state = read_state(checkpoint)
    except UserError as error:
        return str(error).removesuffix(f"; {_REMEDY}")
    problems = checksums.damage(checkpoint, None) if state.sealed else iter(())
    return next((line for line in problems if not line.endswith(checksums.UNLISTED) or ".pt:" in line), None)


def choose(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the latest intact checkpoint of a folder, and what the user must know about it.

    Damaged later ones are renamed to ``step-NNNNNNNN.damaged``, so that no further save counts them as kept.

    Raises
    ------
    UserError
        There are checkpoints, and all of them are damaged.
    """
    problems: list[tuple[Path, str]] = []
    for checkpoint in reversed(checkpoints(folder)):
        problem = damage(checkpoint)
        if problem is None:
            break
        problems.append((checkpoint, problem))
    else:
        if problems:
            raise UserError(f"{problems[0][1]}; no earlier checkpoint is intact: {_REMEDY}, or start again")
        return None, []
    warnings = []
    for damaged, problem in problems:
        aside = damaged.with_name(f"{damaged.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        damaged.rename(aside)
        warnings.append(f"{problem}; the checkpoint is damaged and renamed to {aside}: check the disk, then remove it")
    if problems:
        warnings.append(f"resuming from the earlier checkpoint {checkpoint}; the steps after it are trained again")
    if not read_state(checkpoint).sealed:
        warnings.append(f"{checkpoint}: was written without digests (an earlier version); its tensors are not verified")
    return checkpoint, warnings


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
        raise UserError(f"{problem}; {_REMEDY}")
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
        raise UserError(f"{checkpoint}: a file is missing; {_REMEDY}") from error
    except (OSError, *PARSE_ERRORS) as error:
        if isinstance(error, MemoryError):
            raise
        unfit = isinstance(error, (RuntimeError, KeyError)) and "PytorchStreamReader" not in str(error)
        if unfit or (state.sealed and not isinstance(error, OSError)):  # sealed files are as they were written
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{checkpoint}: does not fit this config ({reason})") from error
        raise UserError(f"{checkpoint}: a file is damaged; {_REMEDY}") from error
    state.world, state.zero_stage, state.precision = world, stage, cast(Precision, precision)
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
