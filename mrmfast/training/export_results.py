"""Results of a run at each checkpoint: the exported encoder and the figures."""

from __future__ import annotations

from typing import Any

import torch

from mrmfast.data.loader import Loader
from mrmfast.models.export import export_encoder
from mrmfast.ops.wide_products import wide_products
from mrmfast.training.engine import World, whole_parameters
from mrmfast.training.figures import draw_figure, loss_figure
from mrmfast.training.run_log import read_lines
from mrmfast.training.settings import TrainConfig

FIGURE_SAMPLES = 4


def write_results(engine: Any, loader: Loader, config: TrainConfig, world: World, step: int) -> None:
    """Export the encoder and draw the figures; every rank takes part, rank 0 writes.

    Parameters
    ----------
    engine : deepspeed.DeepSpeedEngine
    loader : Loader
        Gives the images of the figures.
    config : TrainConfig
    world : World
    step : int
        Optimiser steps done.
    """
    folder, model = config.run.folder, engine.module
    tensors = whole_parameters(engine, model.encoder, world)
    if world.rank == 0:
        export_encoder(folder / "encoder.safetensors", tensors, model.export_recipe())
    model.eval()
    batch = loader.preview(FIGURE_SAMPLES).to(world.device)
    with torch.no_grad(), wide_products(next(model.parameters())):
        figures = model.figures(batch)
    model.train()
    if world.rank == 0:
        for figure in figures:
            draw_figure(figure, folder / "figures" / f"{figure.name}.png", step)
        entries = [entry for entry in read_lines(folder / "metrics.jsonl") if isinstance(entry.get("loss"), float)]
        if entries:
            loss_figure(entries, folder / "figures" / "loss.png")
