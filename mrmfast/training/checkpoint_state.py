"""The state of a checkpoint, and whether its files are as they were written: nothing here loads a tensor."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le
from pydantic import ConfigDict, FiniteFloat, TypeAdapter

from mrmfast.errors import PARSE_ERRORS, UserError
from mrmfast.formats import checksums

# JSON beside DeepSpeed's files rather than inside its client_state: it can be checked before anything is loaded.
STATE = "state.json"
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


REMEDY = "remove this checkpoint and resume again"


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
        raise UserError(f"{path}: missing or damaged; {REMEDY}") from error
    name = _NAME.fullmatch(checkpoint.name)
    if name is None or int(name[1]) != state.step or state.samples < state.step:
        raise UserError(
            f"{path}: damaged (step {state.step}, {state.samples} samples, in a folder called {checkpoint.name}); "
            + REMEDY
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
        return str(error).removesuffix(f"; {REMEDY}")
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
            raise UserError(f"{problems[0][1]}; no earlier checkpoint is intact: {REMEDY}, or start again")
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
