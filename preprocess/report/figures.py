"""Figures of the genetics report, as SVG text; the same numbers give the same bytes."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mrmfast.arithmetic import ceil_div
from preprocess.report.statistics import EDGES, Statistics

BLUE, GREY, RED = "#2f6690", "#9aa5b1", "#c8553d"
SHOWN_SCORES = 12
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "mrmfast",
    "text.parse_math": False,  # a "$" in the name of a score or gene is a dollar sign
}


def bars(labels: list[str], values: list[int], title: str) -> str:
    """Draw one bar per label, e.g. features per chromosome."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.bar(range(len(values)), values, color=BLUE)
        axes.set_xticks(range(len(labels)), labels, rotation=90 if len(labels) > 8 else 0)
        axes.set_ylabel("features")
        axes.set_title(title, loc="left")
        return _svg(figure)


def histogram(values: np.ndarray, title: str, x: str, y: str, log: bool = False, bins: int = 50) -> str:
    """Draw the distribution of finite values."""
    values = values[np.isfinite(values)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.15, 2.3), layout="constrained")
        axes = figure.subplots()
        if np.issubdtype(values.dtype, np.integer) and len(values):
            # Integer steps: fractional bins would show meaningless gaps.
            step = ceil_div(int(np.ptp(values)) + 1, bins)
            axes.hist(values, bins=(np.arange(values.min(), values.max() + step + 1, step) - 0.5).tolist(), color=BLUE)
        else:
            axes.hist(values, bins=bins, color=BLUE)
        if log:
            axes.set_yscale("log")
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(title, loc="left")
        return _svg(figure)


def agreement(source: np.ndarray, store: np.ndarray, x: str, y: str) -> str:
    """Draw frequencies in the store against the source; a flipped variant is on the falling diagonal."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.15, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8)
        axes.plot([0, 1], [1, 0], color=GREY, lw=0.8, ls=":")
        # Rasterized: thousands of vector points would take megabytes.
        axes.scatter(source, store, s=4, color=BLUE, alpha=0.5, linewidths=0, rasterized=True)
        axes.set(xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_title("Allele frequencies", loc="left")
        return _svg(figure)


def distributions(statistics: Statistics) -> str:
    """Draw all features of a float modality as one density map, and a few of them as histograms."""
    share = statistics.histogram / np.maximum(1, statistics.histogram.sum(axis=1, keepdims=True))
    shown = np.unique(np.linspace(0, len(share) - 1, min(SHOWN_SCORES, len(share))).astype(int))
    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(7.5, 4.6), layout="constrained")
        halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.7))
        left, right = halves
        axes = left.subplots()
        axes.imshow(share, aspect="auto", extent=(EDGES[0], EDGES[-1], len(share), 0), cmap="Blues")
        axes.set(xlabel="stored value", ylabel="feature, in stored order")
        axes.set_title(f"all {len(share)}", loc="left")
        grid = right.subplots(ceil_div(len(shown), 3), 3, squeeze=False, sharex=True).ravel()
        for axes, number in zip(grid, shown, strict=False):
            axes.stairs(statistics.histogram[number], EDGES, fill=True, color=BLUE)
            axes.set_title(str(statistics.features.name[number])[:22], loc="left", fontsize=7)
            axes.set_yticks([])
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # HTML accepts the element only without the XML prologue.
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.DOTALL)
