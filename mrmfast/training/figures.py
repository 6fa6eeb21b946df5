"""The run's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mrmfast.atomic import write_aside
from mrmfast.objectives.base import Figure


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
        values = np.array([entry.get(part) if isinstance(entry.get(part), float) else np.nan for entry in metrics])
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        (line,) = axes.plot(steps, values, alpha=0.25, linewidth=0.8)
        axes.plot(steps[window - 1 :], smooth, color=line.get_color(), label=part.replace("loss/", ""))
    axes.set(xlabel="optimiser step", ylabel="loss", yscale="log", title="Training loss and its parts")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)  # beside the curves, which fill the plot
    _save(figure, path)


def draw_figure(figure: Figure, path: Path, step: int) -> None:
    """Draw a row per sample and a column per image; every map has a scale of its own."""
    rows, columns = len(figure.columns[0].images), len(figure.columns)
    drawn, grid = plt.subplots(rows, columns, figsize=(2.2 * columns, 2.35 * rows), squeeze=False)
    for number, column in enumerate(figure.columns):
        grid[0][number].set_title(column.title, fontsize=10)
        photographs = column.images.permute(0, 2, 3, 1).cpu().numpy()
        for row, photograph in enumerate(photographs):
            axis = grid[row][number]
            axis.set_xticks([])
            axis.set_yticks([])
            if column.heat is None:
                axis.imshow(photograph)
                continue
            values, size = column.heat[row].float().cpu().numpy(), len(photograph)
            axis.imshow(photograph.mean(2) / 255, cmap="gray", vmin=0, vmax=1)
            axis.imshow(values, cmap="magma", alpha=0.65, vmin=0, extent=(0, size, size, 0))
            axis.set_xlabel(f"at most {values.max():.1e}", fontsize=8)
    drawn.suptitle(f"{figure.title}, step {step:,}")
    drawn.tight_layout()
    _save(drawn, path)
