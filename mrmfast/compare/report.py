"""The table of a comparison as Markdown, CSV and LaTeX, and its figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import pyplot

from mrmfast import __version__
from mrmfast.atomic import write_aside
from mrmfast.compare.budget import Cost
from mrmfast.compare.cell import CellResult
from mrmfast.compare.plan import Plan
from mrmfast.compare.table import Row, rows

matplotlib.use("Agg")
MEAN = "mean"


def by_method(plan: Plan, results: Sequence[CellResult], evaluation: str, label: str) -> dict[str, dict[int, float]]:
    """Return the values of one label, method -> seed -> value, for the methods that have any."""
    values: dict[str, dict[int, float]] = {method: {} for method in plan.methods}
    for result in results:
        values[result.method][result.seed] = result.scores[evaluation]["values"][label]
    return {method: by_seed for method, by_seed in values.items() if by_seed}


def frame(plan: Plan, results: Sequence[CellResult], evaluation: str) -> pd.DataFrame:
    """Return the table of an evaluation: numbers, for the CSV file."""
    records = []
    for label in results[0].scores[evaluation]["values"]:
        for row in rows(by_method(plan, results, evaluation, label), plan.compared_with):
            record: dict[str, Any] = {"evaluation": evaluation, "label": label}
            for name, value in vars(row).items():
                if isinstance(value, tuple) or name.endswith("interval"):
                    low, high = value or (None, None)
                    record |= {f"{name}_low": low, f"{name}_high": high}
                else:
                    record[name] = value
            records.append(record)
    return pd.DataFrame(records)


def words(plan: Plan, results: Sequence[CellResult], evaluation: str) -> pd.DataFrame:
    """Return the table of an evaluation: text, for people."""
    scores = results[0].scores[evaluation]
    tables = {
        label: {row.method: row for row in rows(by_method(plan, results, evaluation, label), plan.compared_with)}
        for label in scores["values"]
    }
    records = []
    for method, row in tables[MEAN].items():
        gain = "" if row.difference is None else _number(row.difference, row.difference_interval, "+")
        record = {
            "method": method,
            "seeds": str(row.seeds),
            f"{scores['metric']}, {MEAN} (95 %)": _number(row.mean, row.interval),
            f"less {plan.compared_with} (95 %)": gain,
            "adjusted p": "" if row.p_adjusted is None else f"{row.p_adjusted:.3f}",
        }
        record |= {label: f"{table[method].mean:.3f}" for label, table in tables.items() if label != MEAN}
        records.append(record)
    return pd.DataFrame(records)


def _number(value: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    text = f"{value:{sign}.3f}"
    return text if interval is None else f"{text} ({interval[0]:{sign}.3f} to {interval[1]:{sign}.3f})"


def write_report(plan: Plan, results: Sequence[CellResult], costs: Sequence[Cost], out: Path) -> Path:
    """Write ``comparison.md``, ``.csv``, ``.tex`` and ``.png`` from the cells that are done; return the page."""
    evaluations = list(plan.evaluations)
    page, latex = [_head(plan, results)], []
    for evaluation in evaluations:
        counts = ", ".join(f"{count:,} {what}" for what, count in results[0].scores[evaluation]["counts"].items())
        table = words(plan, results, evaluation)
        page.append(f"## {evaluation}\n\n{counts}.\n\n{table.to_markdown(index=False, disable_numparse=True)}")
        caption = f"{evaluation}: mean over seeds with 95 \\% interval."
        latex.append(table.to_latex(index=False, escape=True, caption=caption, label=f"tab:{evaluation}"))
    page.append(_cost_table(results, costs))
    page.append("![scores by method](comparison.png)\n")
    numbers = pd.concat([frame(plan, results, evaluation) for evaluation in evaluations])
    for suffix, text in (("md", "\n\n".join(page)), ("csv", numbers.to_csv(index=False)), ("tex", "\n".join(latex))):
        with write_aside(out / f"comparison.{suffix}") as file:
            file.write(text)
    _draw(plan, results, out / "comparison.png")
    return out / "comparison.md"


def _head(plan: Plan, results: Sequence[CellResult]) -> str:
    total = len(plan.methods) * len(plan.seeds)
    missing = f" **{total - len(results)} of {total} cells are not done.**" if len(results) < total else ""
    tests = len(plan.methods) - 1
    return "\n".join(
        [
            "# Comparison",
            "",
            f"mrmfast {__version__}; {len(plan.methods)} methods, seeds {', '.join(map(str, plan.seeds))}.{missing}",
            "All methods share data, order, rotation and flip, encoder, schedule and number of steps.",
            "",
            "Intervals: Student's t over seeds; they cover initialisation and order, not the choice of participants. "
            f"Differences are paired by seed; p values are adjusted for {tests} comparisons (Benjamini and Hochberg).",
        ]
    )


def _cost_table(results: Sequence[CellResult], costs: Sequence[Cost]) -> str:
    seconds: dict[str, list[float]] = {}
    for result in results:
        seconds.setdefault(result.method, []).append(result.seconds)
    table = pd.DataFrame(
        [
            {
                "method": cost.method,
                "parameters": f"{cost.parameters / 1e6:.2f} M",
                "GFLOP/image": f"{cost.flops_per_image / 1e9:.2f}",
                "images": f"{cost.images:,}",
                "minutes of pre-training, mean": f"{sum(seconds[cost.method]) / len(seconds[cost.method]) / 60:.1f}",
            }
            for cost in costs
            if cost.method in seconds
        ]
    )
    return f"## Cost of a run\n\n{table.to_markdown(index=False, disable_numparse=True)}"


def _draw(plan: Plan, results: Sequence[CellResult], path: Path) -> None:
    """Draw a dot per seed, and mean and interval per method."""
    evaluations = list(plan.evaluations)
    methods = [method for method in plan.methods if any(result.method == method for result in results)]
    figure, axes = pyplot.subplots(
        1, len(evaluations), figsize=(1.8 + 4 * len(evaluations), 1.2 + 0.35 * len(methods)), sharey=True, squeeze=False
    )
    for axis, evaluation in zip(axes[0], evaluations, strict=True):
        values = by_method(plan, results, evaluation, MEAN)
        table: dict[str, Row] = {row.method: row for row in rows(values, plan.compared_with)}
        for height, method in enumerate(reversed(methods)):
            axis.plot(list(values[method].values()), [height] * len(values[method]), "o", color="tab:blue", alpha=0.5)
            row = table[method]
            axis.plot(row.mean, height, "|", color="black", markersize=14)
            if row.interval is not None:
                axis.plot(row.interval, [height, height], "-", color="black", linewidth=1)
        if plan.compared_with in table:
            axis.axvline(table[plan.compared_with].mean, color="0.7", linewidth=1, zorder=0)
        axis.set_title(evaluation, parse_math=False)
        axis.set_xlabel(f"{results[0].scores[evaluation]['metric']}, held-out participants")
    axes[0][0].set_ylim(-0.6, len(methods) - 0.4)
    axes[0][0].set_yticks(range(len(methods)), list(reversed(methods)))
    figure.tight_layout()
    with write_aside(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)
