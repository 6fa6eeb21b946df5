"""The run's figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mrmfast.atomic import write_aside
from mrmfast.objectives.base import Reconstruction


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
    axes.legend()
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
