"""The run's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mrmfast.atomic import write_aside
from mrmfast.objectives.base import Reconstruction, RelationMaps


def _save(figure: Any, path: Path) -> None:
    with write_aside(path, "wb") as file:
        figure.savefig(file, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)


def loss_figure(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss and its parts over steps (log scale; thin: every step, thick: running mean)."""
    parts = [key for key in metrics[0] if key == "loss" or key.startswith("loss/")]
    steps = np.array([entry["step"] for entry in metrics])
    figure, axes = plt.subplots(figsize=(7, 4))
    window = max(1, len(steps) // 50)
    for part in parts:
        values = np.array([entry[part] for entry in metrics])
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        (line,) = axes.plot(steps, values, alpha=0.25, linewidth=0.8)
        axes.plot(steps[window - 1 :], smooth, color=line.get_color(), label=part.replace("loss/", ""))
    axes.set(xlabel="optimiser step", ylabel="loss", yscale="log", title="Training loss and its parts")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)  # beside the curves, which fill the plot
    _save(figure, path)


def reconstruction_figure(pictures: Reconstruction, path: Path, step: int) -> None:
    """Draw originals above their reconstructions."""
    rows = [("original", pictures.original), ("reconstruction", pictures.predicted)]
    count = len(pictures.original)
    figure, axes = plt.subplots(2, count, figsize=(2.2 * count, 4.8), squeeze=False)
    for row, (label, images) in zip(axes, rows, strict=True):
        for axis, image in zip(row, images.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
            axis.imshow(image)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(label)
    figure.suptitle(f"Training images rebuilt from the masked branch, step {step:,}")
    figure.tight_layout()
    _save(figure, path)


def relation_figure(relations: RelationMaps, path: Path, step: int) -> None:
    """Draw relation maps, intact and masked, over the photographs: a row each, every map on a scale of its own."""
    columns = [
        (f"{who}, {branch}", maps)
        for who, pair in relations.maps.items()
        for branch, maps in zip(("intact", "masked"), pair, strict=True)
    ]
    photographs, wide = relations.original.permute(0, 2, 3, 1).cpu().numpy(), 1 + len(columns)
    count, size = photographs.shape[:2]
    figure, grid = plt.subplots(count, wide, figsize=(2.2 * wide, 2.35 * count), squeeze=False)
    for number, (row, photograph) in enumerate(zip(grid, photographs, strict=True)):
        grey = photograph.mean(2) / 255
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].imshow(photograph)
        for axis, (name, maps) in zip(row[1:], columns, strict=True):
            values = maps[number].float().cpu().numpy()
            axis.imshow(grey, cmap="gray", vmin=0, vmax=1)
            axis.imshow(values, cmap="magma", alpha=0.65, vmin=0, extent=(0, size, size, 0))
            axis.set_xlabel(f"at most {values.max():.1e}", fontsize=8)
            if number == 0:
                axis.set_title(name, fontsize=10)
    figure.suptitle(f"Relations of the last relation block to image patches, mean over heads, step {step:,}")
    figure.tight_layout()
    _save(figure, path)
