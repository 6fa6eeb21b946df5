"""Means over seeds, paired differences, one Markdown page and one figure of ``benchmarks/quality``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy import stats

from benchmarks.quality.forms import FORMS

matplotlib.use("Agg")
from matplotlib import pyplot

REFERENCE = "image_only"


def interval(differences: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean over seeds (Student's t)."""
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    return float(low), float(high)


class Results:
    """Figures of all runs.

    Attributes
    ----------
    forms : list of str
    values : dict of str to ndarray
        Name of a figure -> shape (forms, seeds), or (forms, seeds, traits) for ``traits`` and ``few``.
    """

    def __init__(self, forms: Sequence[str], trait_names: Sequence[str], values: dict[str, np.ndarray]) -> None:
        self.forms, self.trait_names, self.values = list(forms), list(trait_names), values

    def of(self, figure: str, form: str) -> np.ndarray:
        """Return a figure of one form, by seed; traits averaged."""
        values: np.ndarray = self.values[figure][self.forms.index(form)]
        return values.mean(-1) if values.ndim == 2 else values

    def gain(self, figure: str, form: str, over: str) -> np.ndarray:
        """Return differences by seed: the same seed draws the same order and the same augmentation."""
        return self.of(figure, form) - self.of(figure, over)


def _pm(values: np.ndarray, digits: int = 3) -> str:
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def markdown(results: Results, head: str, losses: dict[str, dict[str, float]]) -> str:
    """Write the page."""
    lines = [head, "", "## Mean over traits", ""]
    lines.append(
        "| form | what differs | R² all labels | less image-only (95 % interval) | R² 400 labels | recall@10 ridge "
        "| recall@10 cosine | image loss | genome loss |"
    )
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for form in results.forms:
        difference = "-"
        if form != REFERENCE and REFERENCE in results.forms:
            gain = results.gain("traits", form, REFERENCE)
            difference = "{:+.3f} ({:+.3f} to {:+.3f})".format(gain.mean(), *interval(gain))
        cosine = results.of("cosine", form)
        cells = [
            f"`{form}`",
            FORMS[form].meaning,
            _pm(results.of("traits", form)),
            difference,
            _pm(results.of("few", form)),
            _pm(results.of("ridge", form)),
            "-" if np.isnan(cosine).any() else _pm(cosine),
            *(f"{losses[form][part]:.3f}" if part in losses[form] else "-" for part in ("image", "genome")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## By trait (R², all labels, mean ± standard deviation over seeds)", ""]
    lines.append("| form | " + " | ".join(name.replace("_", " ") for name in results.trait_names) + " |")
    lines.append("|---" * (1 + len(results.trait_names)) + "|")
    for number, form in enumerate(results.forms):
        by_trait = results.values["traits"][number].T
        lines.append(f"| `{form}` | " + " | ".join(_pm(values) for values in by_trait) + " |")
    return "\n".join(lines) + "\n"


def figure(results: Results, path: Path) -> None:
    """Draw each form's seeds: mean over traits, and the traits that photographs of this size show best."""
    shown = np.argsort(-results.values["traits"].max((0, 1)))[:3]
    panels: list[tuple[str, Any]] = [("mean of all traits", results.values["traits"].mean(-1))]
    panels += [(results.trait_names[t].replace("_", " "), results.values["traits"][..., t]) for t in shown]
    drawn, axes = pyplot.subplots(1, len(panels), figsize=(11, 0.34 * len(results.forms) + 1.2), sharey=True)
    rows = np.arange(len(results.forms))[::-1]
    for axis, (title, values) in zip(axes, panels, strict=True):
        if REFERENCE in results.forms:
            axis.axvline(values[results.forms.index(REFERENCE)].mean(), color="0.7", linewidth=1, zorder=0)
        for seed in range(values.shape[1]):
            axis.plot(values[:, seed], rows, "o", color="tab:blue", markersize=4, alpha=0.6)
        axis.plot(values.mean(1), rows, "|", color="black", markersize=11)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("R², held out", fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(rows, [form.replace("_", " ") for form in results.forms])
    drawn.tight_layout()
    drawn.savefig(path, dpi=100)
    pyplot.close(drawn)
