"""One run of ``benchmarks/quality``: train a form with one seed, keep the frozen encoders' features.

Loader, objective, optimiser and schedule are the project's own; the loop around them is plain, because ZeRO has nothing
to share out in a process that trains half a million parameters.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.cohort import Cohort, data_config
from benchmarks.quality.forms import FORMS, Form, build_model, genome_alone
from mrmfast.atomic import write_aside
from mrmfast.data.dataset import open_dataset
from mrmfast.data.loader import Loader
from mrmfast.models.config import ModelConfig
from mrmfast.models.patch_embed import normalise
from mrmfast.objectives.mrm import MRM
from mrmfast.training.optimiser import OptimiserConfig, Schedule, build_optimiser
from mrmfast.training.step import step_seed


@dataclass(frozen=True)
class Protocol:
    """What all forms have in common.

    Attributes
    ----------
    image_size : int
        Pixels.
    batch, steps : int
        Images per step; optimiser steps.
    lr : float
        Peak rate.
    modalities : tuple of str
        The genome that is trained on.
    """

    image_size: int = 48
    batch: int = 32
    steps: int = 1000
    lr: float = 3e-3
    modalities: tuple[str, ...] = ("pgs",)


MODEL = ModelConfig(arch="mrmfast_learns_vit", genome_layers=2)


def train(form: Form, seed: int, protocol: Protocol, work: Path) -> tuple[MRM, list[dict[str, float]]]:
    """Train one form; return it with the parts of the loss at each step."""
    modalities = list(protocol.modalities) if form.genome else []
    config = replace(data_config(work, protocol.image_size), modalities=modalities)
    dataset = open_dataset(config)
    torch.manual_seed(seed)
    model = build_model(form, MODEL, protocol.image_size, dataset.genome_spec())
    if not form.trained:
        return model, []
    settings = OptimiserConfig(lr=protocol.lr)
    optimiser = build_optimiser(model, settings, torch.device("cpu"))
    schedule = Schedule(optimiser, settings, protocol.steps)
    loader = Loader(
        dataset,
        config,
        seed=seed,
        batch=protocol.batch,
        micro_batch=protocol.batch,
        rank=0,
        world=1,
        device=torch.device("cpu"),
    )
    history: list[dict[str, float]] = []
    for step, batch in enumerate(loader.batches(0, end=protocol.steps * protocol.batch)):
        schedule.step_update(step)
        drawn = step_seed(seed, step, 0, 0)
        loss, parts = model(batch.views, batch.packed, batch.present, None, drawn, step, protocol.steps)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        history.append({name: float(value) for name, value in parts.items()})
    dataset.source.close()
    return model, history


@torch.no_grad()
def frozen_features(model: MRM, cohort: Cohort) -> dict[str, np.ndarray]:
    """Pool the frozen encoders' tokens: ``image`` as exported (no genome), ``genome`` without the image; (P, D)."""
    model.eval()
    images = [model.image_features(normalise(part)).mean(1) for part in cohort.images_PCHW.split(256)]
    features = {"image": torch.cat(images).numpy()}
    if model.genome is not None:
        whole: Tensor = torch.from_numpy(cohort.genome_PF)
        features["genome"] = torch.cat([genome_alone(model, part) for part in whole.split(256)]).numpy()
    return features


def one_run(work: Path, name: str, seed: int, protocol: Protocol, cohort: Cohort) -> None:
    """Train, and write ``runs/NAME-SEED.npz`` and, last, ``.json``; a finished run with these settings is kept."""
    base = work / "runs" / f"{name}-{seed}"
    settings = json.loads(
        json.dumps({"form": asdict(FORMS[name]) | {"meaning": ""}, "protocol": asdict(protocol), "seed": seed})
    )
    if finished(base, settings):
        return
    began = time.process_time()
    model, history = train(FORMS[name], seed, protocol, work)
    seconds = time.process_time() - began
    base.parent.mkdir(exist_ok=True)
    with write_aside(base.with_suffix(".npz"), "wb") as file:
        arrays: dict[str, Any] = frozen_features(model, cohort)
        np.savez(file, **arrays)
    last = history[-100:]
    losses = {part: float(np.mean([step[part] for step in last])) for part in (last[0] if last else {})}
    with write_aside(base.with_suffix(".json")) as text:
        json.dump({"settings": settings, "cpu_seconds": seconds, "last_losses": losses}, text, indent=1)


def finished(base: Path, settings: dict[str, Any]) -> bool:
    """Tell whether a run with these settings has been written."""
    record = base.with_suffix(".json")
    return record.exists() and json.loads(record.read_text())["settings"] == settings
