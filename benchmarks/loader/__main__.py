"""How fast JPEGs become augmented batches: ours, the loaders people use, and what bounds them all.

``python -m benchmarks.loader [--data PHOTOGRAPHS] [--peers all] [--profile OUT] [--json FILE] [--markdown FILE]``

Tiles of real fundus photographs (:mod:`benchmarks.loader.dataset`) of 224 px, and of 512 px that all resize to 224. The
work is the same for all: JPEG to RGB, rotation within 20 degrees (bilinear), flip, normalisation; batches of 64 as
float32, channels first (``uint8`` where a line says so), shuffled; two threads or two processes. Each loader is a
process of its own; they take turns, an epoch each, after one that isn't timed. Ratios are of a turn, and the median of
the turns counts; ours with and without genetics take more turns by themselves. FFCV cannot rotate, so it is compared
without rotation; it needs ``--ffcv-python`` (how to make that environment: ``benchmarks/peers/ffcv_loader.py``).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench
from benchmarks.loader import dataset as tiles_data
from benchmarks.loader import gate, profile
from benchmarks.peers.process import Process
from benchmarks.peers.task import Task

SIZE = 224
CLOSE = 20  # turns of the two whose speeds may differ by 5 % at most
PAUSE = 0.5  # seconds before a turn: some loaders go on to prefetch after an epoch has ended
FLOAT, BYTES, ALONE = "ours", "ours, uint8", "ours, not rotated"
ALONE_BYTES, JOINED = "ours, not rotated, uint8", "ours, with 26,909 genetic features"
FFCV, FFCV_BYTES = "FFCV, not rotated", "FFCV, not rotated, uint8"
DECODERS = ("limit: decode only, simplejpeg", "limit: decode only, OpenCV")
BARE: dict[str, Any] = {"rotate": False}


@dataclass(frozen=True)
class Entry:
    """A loader of the comparison: ``module:Class``, and how its task differs."""

    module: str
    changes: dict[str, Any]


PEERS = {
    "PyTorch DataLoader + PIL": Entry("pillow:Torch", {}),
    "WebDataset": Entry("pillow:WebDataset", {}),
    "LitData": Entry("pillow:LitData", {}),
    "MosaicML Streaming": Entry("pillow:Mosaic", {}),
    "SPDL": Entry("pillow:SPDL", {}),
    "DALI, CPU operators": Entry("dali:DALI", {}),
}
FAST = {
    FLOAT: Entry("ours:Ours", {}),
    JOINED: Entry("ours:Ours", {"genetics": True}),
    BYTES: Entry("ours:Ours", {"pixels": "uint8"}),
    ALONE: Entry("ours:Ours", BARE),
    FFCV: Entry("ffcv_loader:FFCV", BARE),
    ALONE_BYTES: Entry("ours:Ours", {**BARE, "pixels": "uint8"}),
    FFCV_BYTES: Entry("ffcv_loader:FFCV", {**BARE, "pixels": "uint8"}),
    DECODERS[0]: Entry("limits:Simplejpeg", {}),
    DECODERS[1]: Entry("limits:OpenCV", {}),
    "limit: decode and warp, OpenCV, uint8": Entry("limits:OpenCVWarp", {}),
    "limit: copy of float32 batches": Entry("limits:Copy", {}),
}
# Not what their users write, so no bar hangs on it.
DRAFT = {"PyTorch DataLoader + PIL in draft mode": Entry("pillow:TorchDraft", {})}


def compare(bench: Bench, task: Task, arguments: argparse.Namespace) -> list[str]:
    """Measure all loaders at one size; return the lines of a Markdown table."""
    label = f"{task.stored} px"
    chosen = {name: entry for name, entry in PEERS.items() if arguments.peers == "all" or name in arguments.peers}
    chosen |= FAST | (DRAFT if task.stored != task.size and arguments.peers == "all" else {})
    speeds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for name, entry in chosen.items():
            interpreter = arguments.ffcv_python if entry.module.startswith("ffcv") else sys.executable
            if interpreter is None:
                bench.skip(f"{label}: {name}", "no --ffcv-python")
                continue
            try:
                process = Process(entry.module, replace(task, **entry.changes), interpreter)
            except (RuntimeError, OSError) as error:
                bench.skip(f"{label}: {name}", str(error))
                continue
            processes[name] = stack.enter_context(closing(process))
        _gate(bench, task, chosen, processes)
        for _ in range(arguments.epochs):
            turn: dict[str, list[float]] = {name: [] for name in processes}
            for again in range(arguments.fast):
                # To and fro, so that no two always follow each other: a turn may profit or suffer from the one before.
                for name, process in list(processes.items())[:: -1 if again % 2 else 1]:
                    if again == 0 or name in FAST:
                        turn[name].append(_turn(process))
            for name, values in turn.items():
                speeds.setdefault(name, []).append(statistics.median(values))
        joined = _against(processes[JOINED], processes[FLOAT]) if {JOINED, FLOAT} <= set(processes) else None
    lines = [
        "",
        f"## {label}, {task.tiles:,} tiles",
        "",
        "| loader | images/s | of ours | peak memory, MB | threads | processes |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, process in sorted(processes.items(), key=lambda item: -statistics.median(speeds[item[0]])):
        speed, share = statistics.median(speeds[name]), _ratio(speeds, name, FLOAT)
        bench.figure(f"{label}: {name}", speed, "images/s")
        for what, value in (("threads", process.threads), ("processes", process.processes)):
            bench.figure(f"{label}: {name}: {what}", value, "")
        bench.figure(f"{label}: {name}: peak memory", process.memory / 1e6, "MB")
        lines.append(
            f"| {name} | {speed:,.0f} | {share or 0:.2f} | {process.memory / 1e6:,.0f} | {process.threads} "
            f"| {process.processes} |"
        )
    _bars(bench, label, speeds, joined)
    return lines


def _turn(process: Process) -> float:
    """Let a loader go through an epoch; return images a second."""
    time.sleep(PAUSE)
    answer = process.epoch()
    return float(answer["pictures"] / answer["seconds"])


def _against(one: Process, other: Process) -> float:
    """Return how many times as fast as another a loader is, from many turns: 5 % cannot be told in three."""
    ratios = []
    for number in range(CLOSE):
        first, second = (one, other) if number % 2 else (other, one)
        speeds = {first: _turn(first), second: _turn(second)}
        ratios.append(speeds[one] / speeds[other])
    return statistics.median(ratios)


def _gate(bench: Bench, task: Task, chosen: dict[str, Entry], processes: dict[str, Process]) -> None:
    """Hold every loader that hands over images to the same work as ours."""
    for name, process in processes.items():
        if not name.startswith("limit"):
            mine = replace(task, **chosen[name].changes)
            ours = FLOAT if mine.pixels == "float32" else BYTES
            gate.check_peer(bench, name, process, mine, processes[ours].first["mean"])


def _ratio(speeds: dict[str, list[float]], name: str, other: str) -> float | None:
    """Return how many times as fast as `other` a loader is; None where one of them was not measured."""
    if name not in speeds or other not in speeds:
        return None
    return statistics.median(a / b for a, b in zip(speeds[name], speeds[other], strict=True))


def _bars(bench: Bench, label: str, speeds: dict[str, list[float]], joined: float | None) -> None:
    """Record the bars; the ones against all peers need all of them. `joined`: with genetics / without."""
    peers = [name for name in PEERS if name in speeds]
    fastest = max(peers, key=lambda name: statistics.median(speeds[name])) if len(peers) == len(PEERS) else ""
    decoder = max(DECODERS, key=lambda name: statistics.median(speeds.get(name, [0.0])))
    bench.bar(f"{label}: ours / {fastest or 'the fastest of six peers'}", _ratio(speeds, FLOAT, fastest), ">=", 5)
    bench.bar(f"{label}: ours / decode only", _ratio(speeds, FLOAT, decoder), ">=", 0.4)
    bench.bar(f"{label}: ours, uint8 / decode only", _ratio(speeds, BYTES, decoder), ">=", 0.4)
    bench.bar(f"{label}: ours / FFCV, both not rotated, float32", _ratio(speeds, ALONE, FFCV), ">=", 1.1)
    bench.bar(f"{label}: ours / FFCV, both not rotated, uint8", _ratio(speeds, ALONE_BYTES, FFCV_BYTES), ">=", 1.1)
    bench.bar(f"{label}: ours with genetics / without", joined, ">=", 0.95)


def main() -> int:
    """Run it; return 0 where every bar holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder of photographs (default: MRMFAST_PHOTOGRAPHS; else simulated)"
    )
    parser.add_argument("--peers", nargs="+", default="all", metavar="NAME", help="all (default), or some by name")
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 512], help="of the JPEGs, pixels")
    parser.add_argument("--tiles", type=int, default=4096, help="half as many of those larger than 224 px")
    parser.add_argument("--epochs", type=int, default=3, help="that are timed (default: %(default)s)")
    parser.add_argument("--fast", type=int, default=3, help="turns of the fast ones in each (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder that keeps tiles and the peers' formats for the next run")
    parser.add_argument("--ffcv-python", help="interpreter of the environment that holds FFCV")
    parser.add_argument("--profile", type=Path, metavar="OUT", help="folder for a profile of our loader")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="and a table here")
    arguments = parser.parse_args()
    arguments.peers = "all" if arguments.peers in ("all", ["all"]) else arguments.peers
    bench = Bench("loader: JPEGs to augmented batches", arguments.json)
    lines = ["# " + bench.title, "", *(line for line in str(__doc__).strip().splitlines()[4:])]
    with tempfile.TemporaryDirectory(prefix="mrmfast-loader-") as temporary:
        work = arguments.work or Path(temporary)
        photographs = tiles_data.find_photographs(arguments.data)
        bench.figure("photographs are real ones", photographs is not None, "")
        for stored in arguments.sizes:
            tiles = arguments.tiles if stored <= SIZE else arguments.tiles // 2
            dataset = tiles_data.make(work, photographs, tiles, stored)
            task = Task(dataset, work / f"formats-{stored}", tiles, stored, SIZE)
            gate.check(bench, task)
            lines += compare(bench, task, arguments)
            if arguments.profile and stored == arguments.sizes[0]:
                report = profile.profile(replace(task, genetics=True), arguments.profile)
                print(report)
                lines += ["", "## Where ours spends its time", "", *report.splitlines()]
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text("\n".join([*lines, "", *_verdicts(bench)]) + "\n")
    return bench.finish()


def _verdicts(bench: Bench) -> list[str]:
    rows = ["## Bars", "", "| bar | value | bound | holds |", "|---|---:|---:|---|"]
    for bar in bench.bars:
        value = "not measured" if bar["value"] is None else f"{bar['value']:.3g}"
        rows.append(f"| {bar['name']} | {value} | {bar['op']} {bar['bound']:g} | {'yes' if bar['holds'] else 'no'} |")
    return rows


if __name__ == "__main__":
    sys.exit(main())
