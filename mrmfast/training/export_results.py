"""What a run hands over at each checkpoint: the exported encoder and the figures."""

from __future__ import annotations

from typing import Any

from mrmfast.data.loader import Loader
from mrmfast.models.export import export_encoder
from mrmfast.training.engine import World, whole_parameters
from mrmfast.training.figures import loss_figure, reconstruction_figure, relation_figure
from mrmfast.training.run_log import read_lines
from mrmfast.training.settings import TrainConfig

FIGURE_SAMPLES = 4


def write_results(engine: Any, loader: Loader, config: TrainConfig, world: World, step: int) -> None:
    """Export the encoder and draw the figures; every rank takes part, rank 0 writes.

    Parameters
    ----------
    engine : deepspeed.DeepSpeedEngine
    loader : Loader
        Gives the pictures of the figure.
    config : TrainConfig
    world : World
    step : int
        Optimiser steps done.
    """
    folder = config.run.folder
    tensors = whole_parameters(engine, engine.module.image, world)
    if world.rank == 0:
        export_encoder(folder / "encoder.safetensors", tensors, engine.module.image, config.model.residual)
    engine.module.eval()
    batch = loader.preview(FIGURE_SAMPLES).to(world.device)
    pictures = engine.module.reconstruct(batch.image_BCHW, batch.packed, batch.present)
    maps = engine.module.relation_maps(batch.image_BCHW, batch.packed, batch.present)
    engine.module.train()
    if world.rank == 0:
        reconstruction_figure(pictures, folder / "figures" / "reconstructions.png", step)
        if maps is not None:
            relation_figure(maps, folder / "figures" / "relations.png", step)
        loss_figure(read_lines(folder / "metrics.jsonl"), folder / "figures" / "loss.png")
