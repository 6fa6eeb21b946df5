"""Tables of GPU figures: written as Markdown and JSON, compared with the last one of the same card."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench, environment
from benchmarks.relation.floor import table
from mrmfast.atomic import write_aside

CHANGE = 0.10  # differences up to this share are not reported


def slug(card: str) -> str:
    """Return the card's name as part of a file name."""
    return "-".join(card.lower().split())


def driver() -> str:
    """Return the driver's version as nvidia-smi names it, or ``unknown``."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def document(bench: Bench, card: str) -> dict[str, Any]:
    """Return a table as JSON holds it: card, gates, bars, figures, skipped sections, machine and versions."""
    passed = bool(bench.gates) and all(gate["holds"] for gate in bench.gates)
    versions = {name: _version(name) for name in ("torch", "triton", "deepspeed", "timm", "nvidia.dali")}
    return {
        "benchmark": bench.title,
        "card": card,
        "source": "bash scripts/gpu_check.sh",
        "gate": "passed" if passed else "failed",
        "env": {**environment(), "driver": driver(), "gpu_versions": versions},
        "gates": bench.gates,
        "bars": bench.bars,
        "figures": bench.figures,
        "skipped": bench.skipped,
    }


def _version(name: str) -> str:
    import importlib

    try:
        return str(getattr(importlib.import_module(name), "__version__", "installed"))
    except ImportError:
        return "absent"


def markdown(content: dict[str, Any]) -> str:
    """Return a table as Markdown: gates, bars, figures, and what was skipped."""
    text = f"# {content['card']}\n\nSource: {content['source']}; gates {content['gate']}.\n"
    gates = [[gate["name"], "yes" if gate["holds"] else "NO"] for gate in content["gates"]]
    text += "\n" + table([["gate", "holds"], *gates])
    bars = [bar_row(bar) for bar in content["bars"]]
    text += "\n" + table([["bar", "value", "bound", "holds"], *bars])
    figures = [[figure["name"], shown(figure), figure["unit"]] for figure in content["figures"]]
    text += "\n" + table([["figure", "value", "unit"], *figures])
    return text + "".join(f"\nSkipped {name}: {reason}.\n" for name, reason in content["skipped"].items())


def bar_row(bar: dict[str, Any]) -> list[str]:
    """Return name, value, bound and verdict of a bar."""
    value = "not measured" if bar["value"] is None else f"{bar['value']:.3g}"
    return [bar["name"], value, f"{bar['op']} {bar['bound']:g}", "yes" if bar["holds"] else "NO"]


def shown(figure: dict[str, Any]) -> str:
    """Return a figure's value, or its range where several runs differed."""
    ends = [figure[key] for key in ("value", "to") if key in figure]
    return " to ".join(f"{end:,.4g}" if end < 10_000 else f"{end:,.0f}" for end in ends)


def last_table(folder: Path, card: str) -> tuple[str, dict[str, Any]] | None:
    """Return name and content of the last table of a card: the one that a run writes, else another of that card."""
    own = folder / f"gpu-{slug(card)}.json"
    others = [path for path in sorted(folder.glob("gpu-*.json")) if path != own]
    for path in [own, *reversed(others)]:
        if path.exists():
            content = json.loads(path.read_text())
            if content["card"] == card:
                return path.name, content
    return None


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name the figures that differ by more than 10 %, from a range's nearer end, and those only one table holds."""
    old = {figure["name"]: figure for figure in before["figures"]}
    new = {figure["name"]: figure for figure in now["figures"]}
    lines = []
    for name, figure in new.items():
        if name not in old:
            continue
        low, high = old[name]["value"], old[name].get("to", old[name]["value"])
        if not low * (1 - CHANGE) <= figure["value"] <= high * (1 + CHANGE):
            nearer = low if figure["value"] < low else high
            share = f", {figure['value'] / nearer:.2f} times" if nearer else ""
            lines.append(f"{name}: {shown(old[name])} before, now {shown(figure)} {figure['unit']}{share}")
    lines += [f"{name}: not measured before" for name in new if name not in old]
    lines += [f"{name}: no longer measured" for name in old if name not in new]
    return lines


def write(folder: Path, content: dict[str, Any]) -> Path:
    """Write a table beside the others; return the path of its JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"gpu-{slug(content['card'])}.json"
    with write_aside(target) as file:
        file.write(json.dumps(content, indent=1) + "\n")
    with write_aside(target.with_suffix(".md")) as file:
        file.write(markdown(content))
    return target
