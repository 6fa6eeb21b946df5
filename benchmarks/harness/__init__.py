"""What benchmarks share: a correctness gate before any speed, medians, peak memory, bars, one table and one JSON."""

from __future__ import annotations

import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mrmfast.atomic import write_aside

OPERATORS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


class GateError(AssertionError):
    """A result is wrong, so no speed is reported."""


class Bench:
    """Collect figures of one benchmark.

    Parameters
    ----------
    title : str
    path : Path, optional
        Where the JSON goes; it is written when the benchmark ends, by a failed gate too.
    """

    def __init__(self, title: str, path: Path | None = None) -> None:
        self.title, self.path = title, path
        self.gates: list[dict[str, Any]] = []
        self.figures: list[dict[str, Any]] = []
        self.bars: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}

    def gate(self, name: str, holds: bool) -> None:
        """Record a check of correctness.

        Raises
        ------
        GateError
            It fails; the JSON then records it, with what was measured before.
        """
        self.gates.append({"name": name, "holds": bool(holds)})
        print(f"gate  {'ok  ' if holds else 'FAIL'}  {name}", flush=True)
        if not holds:
            self.write()
            raise GateError(name)

    def figure(self, name: str, value: float, unit: str) -> None:
        """Record a measurement without a bar."""
        self.figures.append({"name": name, "value": value, "unit": unit})
        print(f"      {name}: {value:,.4g} {unit}", flush=True)

    def bar(self, name: str, value: float | None, op: str, bound: float) -> None:
        """Record whether `value` meets `bound`. None means not measured, and the bar does not hold."""
        holds = value is not None and OPERATORS[op](value, bound)
        self.bars.append({"name": name, "value": value, "op": op, "bound": bound, "holds": holds})

    def skip(self, peer: str, reason: str) -> None:
        """Record a peer that could not be measured."""
        self.skipped[peer] = reason
        print(f"      skipped {peer}: {reason}", flush=True)

    def finish(self) -> int:
        """Print the table, write the JSON; return 0 where every bar holds, else 1."""
        print(f"\n{self.title}\n{'bar':<68} {'value':>12}    {'bound':>8}")
        for bar in self.bars:
            value = "not measured" if bar["value"] is None else f"{bar['value']:,.4g}"
            verdict = "" if bar["holds"] else "   does NOT hold"
            print(f"{bar['name']:<68} {value:>12} {bar['op']} {bar['bound']:>8,.4g}{verdict}")
        self.write()
        return 0 if all(bar["holds"] for bar in self.bars) else 1

    def write(self) -> None:
        """Write the JSON, where there is a path."""
        if self.path is None:
            return
        # A benchmark that checked nothing has not passed.
        passed = bool(self.gates) and all(gate["holds"] for gate in self.gates)
        document: dict[str, Any] = {"benchmark": self.title, "gate": "passed" if passed else "failed"}
        document |= {"env": environment(), "gates": self.gates, "bars": self.bars}
        document |= {"figures": self.figures, "skipped": self.skipped}
        with write_aside(self.path) as file:
            file.write(json.dumps(document, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Describe the machine and the versions; no names of users or hosts."""
    versions = {}
    for name in ("numpy", "torch", "zarr", "pgenlib", "bed_reader", "cyvcf2"):
        try:
            versions[name] = getattr(__import__(name), "__version__", "installed")
        except ImportError:
            versions[name] = "absent"
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "")
    return {
        "python": platform.python_version(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_at_end": os.getloadavg()[0],
        "versions": versions,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def median(call: Callable[[], Any], repeats: int = 7) -> float:
    """Return the median seconds of `repeats` calls, after one that is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def run(command: Sequence[str], **environment_changes: str) -> tuple[float, int]:
    """Run a command and its children to the end.

    Returns
    -------
    float
        Seconds.
    int
        Peak resident bytes of the process tree, sampled every 20 ms.

    Raises
    ------
    RuntimeError
        It fails; with the end of its output.
    """
    import psutil  # here, so that benchmarks of kernels run where only torch and Triton are installed

    # To a file: a pipe without a reader blocks the command after 64 KB.
    with tempfile.TemporaryFile("w+", errors="replace") as printed:
        start, peak = time.perf_counter(), 0
        process = subprocess.Popen(
            list(command), env={**os.environ, **environment_changes}, stdout=printed, stderr=subprocess.STDOUT
        )
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            resident = 0
            try:
                for member in (watched, *watched.children(recursive=True)):
                    resident += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            peak = max(peak, resident)
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if process.returncode:
            printed.seek(0)
            end = printed.read()[-2000:]
            raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}\n{end}")
    return seconds, peak


def median_run(command: Sequence[str], repeats: int, prepare: Callable[[], Any], **changes: str) -> tuple[float, int]:
    """Run a command `repeats` times, `prepare` before each; return median seconds and the largest peak."""
    results = []
    for _ in range(repeats):
        prepare()
        results.append(run(command, **changes))
    return statistics.median(seconds for seconds, _ in results), max(peak for _, peak in results)


def python(*arguments: str) -> list[str]:
    """Return a command of this interpreter."""
    return [sys.executable, *arguments]
