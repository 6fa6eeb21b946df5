"""``docs/gpu.md`` from the committed tables of GPU figures.

python -m benchmarks.gpu.page          write the page, and the Markdown of each table
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.table import bar_row, markdown, shown
from benchmarks.relation.floor import table
from mrmfast.atomic import write_aside

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "gpu.md"
GROUPS = {
    "The main job": ("main job",),
    "Training step without the engine": ("step", "arithmetic", "matrix product", "copy bandwidth"),
    "Loader": ("loader", "DALI"),
    "Kernels": ("",),
}
# What scripts/gpu_check.sh measures: the page marks a table without it.
EXPECTED = {
    "main job, micro-batch 64": "the main job at the shipped micro-batch",
    "main job, micro-batch 256: MFU": "model FLOPs utilisation of the main job",
    "step, micro-batch 256: compiled": "the compiled training step",
    "step, micro-batch 256: MAE": "MAE at the same size",
    "loader: ours, DALI on the GPU, 8 threads, batch 256, with genetics": "the loader on the GPU",
    "loader: torchvision decode_jpeg, batch 256": "torchvision's decoder",
    "copy bandwidth, read + write": "the card's copy bandwidth",
}
HEAD = """# Figures from GPUs

`bash scripts/gpu_check.sh` measures these on a machine with a GPU. `python -m benchmarks.gpu.page` writes this page
from the committed tables, `benchmarks/results/gpu-*.json`. A figure that is not in a table has not been measured.
"""


def tables(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the committed tables by the names of their files."""
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("gpu-*.json"))}


def page(documents: dict[str, dict[str, Any]]) -> str:
    """Return the page: for each table what holds, the figures by group, and what was not measured."""
    text = HEAD
    for name, document in documents.items():
        commit = f", commit {document['commit']}" if "commit" in document else ""
        text += (
            f"\n## {document['card']}{commit}\n\nTable: `benchmarks/results/{name}`. Source: {document['source']}.\n"
        )
        versions = ", ".join(f"{key} {value}" for key, value in document["env"].get("gpu_versions", {}).items())
        text += f"Versions: {versions}; {document['env'].get('cores', 'unknown')} CPU cores.\n"
        text += "\n" + table([["checked", "holds"], *_gates(document)])
        text += "\n" + table([["goal", "value", "bound", "holds"], *_bars(document)])
        left = list(document["figures"])
        for title, starts in GROUPS.items():
            chosen = [figure for figure in left if figure["name"].startswith(starts)]
            left = [figure for figure in left if figure not in chosen]
            if chosen:
                text += f"\n### {title}\n\n" + table([["figure", "value", "unit"], *_rows(chosen)])
        text += f"\n### Not measured\n\n{_unmeasured(document)}"
    measured = sorted({document["card"] for document in documents.values()})
    text += f"\n## Other cards\n\nNothing has been measured on any card but: {', '.join(measured) or 'none'}.\n"
    return text


def _gates(document: dict[str, Any]) -> list[list[str]]:
    return [[gate["name"], "yes" if gate["holds"] else "NO"] for gate in document["gates"]]


def _bars(document: dict[str, Any]) -> list[list[str]]:
    return [bar_row(bar) for bar in document["bars"]]


def _rows(figures: list[dict[str, Any]]) -> list[list[str]]:
    return [[figure["name"], shown(figure), figure["unit"]] for figure in figures]


def _unmeasured(document: dict[str, Any]) -> str:
    names = {figure["name"] for figure in document["figures"]}
    lines = [f"- {what}" for name, what in EXPECTED.items() if name not in names]
    lines += [f"- {name}: {reason}" for name, reason in document["skipped"].items()]
    return "".join(f"{line}\n" for line in lines) or "Nothing that `scripts/gpu_check.sh` measures.\n"


def main() -> int:
    """Write the page and the tables' Markdown."""
    documents = tables()
    for name, document in documents.items():
        with write_aside((RESULTS / name).with_suffix(".md")) as file:
            file.write(markdown(document))
    with write_aside(PAGE) as file:
        file.write(page(documents))
    return 0


if __name__ == "__main__":
    sys.exit(main())
