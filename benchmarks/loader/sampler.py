"""The order of 100 million samples in 100,000 shards, of which a split selects 80 %: seconds and memory.

Method: each mode runs in a process of its own, from a manifest's counts and a mask in memory. Timed is what a start
does: make the plan, take a batch at a position of a late epoch, make the plan again as a resumed run does, take the
next. Peak memory is the process's (interpreter, NumPy and the mask of 100 MB with it). Throughput: batches of 1,024 on
one thread, against the 50,000 images/s that a node of fast GPUs might ask for. Peer: NumPy's permutation, listed.

    python -m benchmarks.loader.sampler [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Bench, python, run
from mrmfast.data.sampling.sampler import Sampler

SAMPLES, SHARDS, SHARE, BATCH = 100_000_000, 100_000, 0.8, 1_024
# Window of shards; 0 is local mode.
MODES = {"local": 0, "object": 4}
# Their inputs alone (a weight or a participant a sample) outgrow the bound at 100 million.
SAMPLINGS, SAMPLING_SAMPLES = ("weights", "participants"), 10_000_000


def manifest(samples: int, shards: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate a dataset: samples per shard, int64, shape (shards,), and a split, bool, shape (samples,)."""
    generator = np.random.default_rng(0)
    edges = np.sort(generator.integers(0, samples, shards - 1))
    selected = np.empty(samples, dtype=bool)
    for start in range(0, samples, 1 << 20):
        part = selected[start : start + (1 << 20)]
        part[:] = generator.integers(0, 256, len(part), dtype=np.uint8) < SHARE * 256
    return np.diff(edges, prepend=0, append=samples), selected


def measure(mode: str, samples: int, shards: int) -> dict[str, Any]:
    """Run one mode in this process."""
    per_shard, selected = manifest(samples, shards)
    window = MODES.get(mode, 0)
    extra: dict[str, np.ndarray] = {}
    if mode == "weights":
        extra = {"weights": np.random.default_rng(1).gamma(1.0, size=samples)}
    if mode == "participants":
        extra = {"participant": np.arange(samples) // 2}

    def begin() -> Sampler:
        return Sampler(per_shard, 0, window, selected=selected, **extra)

    start = time.perf_counter()
    plan = begin()
    planned = time.perf_counter()
    position = 37 * len(plan) + len(plan) // 3
    before = plan.take(position, BATCH)
    placed = time.perf_counter()
    resumed = begin()
    after = resumed.take(before.end, BATCH)
    end = time.perf_counter()

    whole = plan.take(position, 2 * BATCH).sample
    many = plan.take(38 * len(plan), min(len(plan), 500_000)).sample
    bad = frozenset(many[[3, 500]].tolist())
    checks = {
        "a resumed run continues": np.array_equal(whole, np.concatenate([before.sample, after.sample])),
        "samples are of the split": bool(selected[whole].all()),
        "skipped samples are replaced": plan.take(38 * len(plan), BATCH, bad).end == 38 * len(plan) + BATCH + 2,
    }
    if mode != "weights":
        checks["no sample comes twice in an epoch"] = len(np.unique(many)) == len(many)

    def rate(call: Any) -> float:
        seconds = []
        for turn in range(200):
            began = time.perf_counter()
            call(position + turn * BATCH)
            seconds.append(time.perf_counter() - began)
        return BATCH / statistics.median(seconds)

    return {
        "checks": checks,
        "plan": planned - start,
        "position": placed - planned,
        "resume": end - placed,
        "take": rate(lambda at: plan.share(plan.take(at, BATCH), 3, 8)),
        "ahead": rate(lambda at: plan.shards_ahead(at, BATCH, 3, 8, BATCH)),
        "peak": peak_memory(),
    }


def peak_memory() -> int:
    """Return this process's peak resident bytes (not ru_maxrss, which begins with the parent's)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def in_a_process(mode: str, samples: int = SAMPLES, shards: int = SHARDS) -> dict[str, Any]:
    """Run :func:`measure` in a process of its own."""
    command = python("-m", "benchmarks.loader.sampler", "--measure", mode, str(samples), str(shards))
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def gates(bench: Bench, mode: str, runs: list[dict[str, Any]]) -> None:
    """Stop where a check of a run failed."""
    for name in runs[0]["checks"]:
        bench.gate(f"{mode}: {name}", all(run["checks"][name] for run in runs))


def main() -> int:
    """Run; exit status 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=3, metavar=("MODE", "SAMPLES", "SHARDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        mode, samples, shards = arguments.measure
        print(json.dumps(measure(mode, int(samples), int(shards))))
        return 0
    bench = Bench("plan: 100 million samples in 100,000 shards, 80 % selected", arguments.json)
    for window in (0, 4):
        plan = Sampler([7, 0, 900, 93] * 40, 0, window)
        epochs = plan.take(len(plan), 2 * len(plan)).sample.reshape(2, -1)
        bench.gate(
            f"window {window}: two epochs hold each of 40,000 once", (np.sort(epochs) == np.arange(40_000)).all()
        )
    for mode in MODES:
        runs = [in_a_process(mode) for _ in range(3)]
        gates(bench, mode, runs)
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "checks"}
        for step in ("plan", "position", "resume"):
            bench.figure(f"{mode}: {step}", median[step], "s")
        bench.figure(f"{mode}: shards ahead, looked through", median["ahead"], "samples/s")
        seconds = median["plan"] + median["position"] + median["resume"]
        bench.bar(f"{mode}: plan, position and resume, s", seconds, "<=", 2)
        bench.bar(f"{mode}: peak memory of the process, MB", max(run["peak"] for run in runs) / 1e6, "<=", 500)
        bench.bar(f"{mode}: take and share, samples/s", median["take"], ">=", 50_000)
    for mode in SAMPLINGS:
        figures = in_a_process(mode, SAMPLING_SAMPLES, SHARDS // 10)
        gates(bench, mode, [figures])
        seconds = figures["plan"] + figures["position"] + figures["resume"]
        bench.figure(f"{mode}, 10 million samples: plan, position and resume", seconds, "s")
        bench.figure(f"{mode}, 10 million samples: take and share", figures["take"], "samples/s")
        bench.figure(f"{mode}, 10 million samples: peak memory", figures["peak"] / 1e6, "MB")
    listing = f"import numpy as np; np.random.default_rng(0).permutation({int(SAMPLES * SHARE)})"
    seconds, peak = run(python("-c", listing))
    bench.figure("peer, one epoch listed by NumPy: process", seconds, "s")
    bench.figure("peer, one epoch listed by NumPy: peak memory", peak / 1e6, "MB")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
