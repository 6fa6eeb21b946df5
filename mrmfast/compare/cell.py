"""One cell of a comparison: pre-train, evaluate, keep the scores. Cells do not know of each other."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mrmfast.atomic import write_aside
from mrmfast.command import INTERRUPTED
from mrmfast.compare.plan import Cell, Plan
from mrmfast.errors import UserError
from mrmfast.evaluation.base import Evaluation
from mrmfast.models.export import export_encoder
from mrmfast.objectives import build_objective
from mrmfast.training.build import build_data
from mrmfast.training.run_log import read_lines


@dataclass(frozen=True)
class CellResult:
    """What a finished cell leaves in ``cells/NAME.json``.

    Attributes
    ----------
    method : str
    seed : int
    digest : str
        Of everything the scores depend on (:meth:`mrmfast.compare.plan.Plan.digest`).
    seconds : float
        Of the steps of pre-training; 0 without pre-training.
    losses : dict of str to float
        Of the last step.
    scores : dict
        Evaluation -> :class:`mrmfast.evaluation.base.Scores` as a dict.
    """

    method: str
    seed: int
    digest: str
    seconds: float
    losses: dict[str, float]
    scores: dict[str, dict[str, Any]]


def result_path(out: Path, cell: Cell) -> Path:
    """Return where a cell's result lies."""
    return out / "cells" / f"{cell.name}.json"


def read_result(out: Path, plan: Plan, cell: Cell) -> CellResult | None:
    """Return the result of a finished cell, None where it is not finished.

    Raises
    ------
    UserError
        The file is damaged, or belongs to other settings.
    """
    path = result_path(out, cell)
    try:
        result = CellResult(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged; remove it, and the cell is evaluated again") from error
    if result.digest != plan.digest(cell):
        raise UserError(
            f"{path}: was made with other settings than the plan's; choose another --out, or remove {path} and "
            f"{out / 'runs' / cell.name}"
        )
    return result


def run_cell(plan: Plan, evaluations: dict[str, Evaluation], cell: Cell, out: Path, gpus: int | None) -> CellResult:
    """Pre-train a cell's encoder (or resume it), evaluate it, and write the result.

    Parameters
    ----------
    plan : Plan
    evaluations : dict of str to Evaluation
    cell : Cell
    out : Path
        The run goes to ``out/runs``, the result to ``out/cells``.
    gpus : int, optional
        As for ``mrmfast train``.

    Raises
    ------
    UserError
        Training or an evaluation ends with an error.
    KeyboardInterrupt
        Training was interrupted.
    """
    folder = out / "runs" / cell.name
    if plan.methods[cell.method] is None:
        _export_untrained(plan, cell, folder)
    else:
        _train(plan, cell, out, gpus)
    data = plan.train_config(cell).data
    scores = {
        name: asdict(evaluation.evaluate(folder / "encoder.safetensors", data))
        for name, evaluation in evaluations.items()
    }
    seconds, losses = _training_record(folder, plan.train_config(cell).batch_size)
    result = CellResult(cell.method, cell.seed, plan.digest(cell), seconds, losses, scores)
    path = result_path(out, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as file:
        json.dump(asdict(result), file, indent=1)
    return result


def train_arguments(plan: Plan, cell: Cell, out: Path) -> list[str]:
    """Return the arguments of ``mrmfast train`` for a cell."""
    return [
        *("train", "--config", plan.config, "--resume"),
        *plan.settings(cell),
        f"run.dir={out / 'runs'}",
        f"run.name={cell.name}",
    ]


def _train(plan: Plan, cell: Cell, out: Path, gpus: int | None) -> None:
    arguments = train_arguments(plan, cell, out)
    if gpus is not None:
        arguments[1:1] = ["--gpus", str(gpus)]
    status = subprocess.run([sys.executable, "-m", "mrmfast", *arguments], check=False).returncode
    if status == INTERRUPTED or status < 0:
        raise KeyboardInterrupt
    if status:
        raise UserError(f"{cell.name}: training ended with status {status}, its message stands above")


def _export_untrained(plan: Plan, cell: Cell, folder: Path) -> None:
    """Export the encoder as a run of this seed initialises it."""
    config = plan.train_config(cell)
    dataset = build_data(config)
    try:
        spec = dataset.genome_spec()
    finally:
        dataset.source.close()
    torch.manual_seed(config.seed)
    model = build_objective(config.objective, config.model, config.data.image_size, spec)
    folder.mkdir(parents=True, exist_ok=True)
    export_encoder(folder / "encoder.safetensors", model.encoder.state_dict(), model.export_recipe())


def _training_record(folder: Path, batch: int) -> tuple[float, dict[str, float]]:
    """Return the seconds of all steps and the losses of the last, from the run's log."""
    path = folder / "metrics.jsonl"
    entries = read_lines(path) if path.exists() else []
    if not entries:
        return 0.0, {}
    seconds = sum(batch / entry["images_per_s"] for entry in entries)
    known = {"step", "lr", "grad_norm", "skipped", "skipped_samples", "images_per_s", "data_wait", "mfu"}
    return seconds, {name: value for name, value in entries[-1].items() if name not in known}
