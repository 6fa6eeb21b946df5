"""Compares loaders on the object store: each runs in its own process with its own format.

The processes run one after another, and each does all its repeats. The calls of :mod:`benchmarks.object_store` take
turns by the epoch instead. :mod:`benchmarks.object_store.peers` is the program of each process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Bench, python
from benchmarks.harness.servers import Nginx
from benchmarks.object_store.peers import COUNT, KIND, LOADERS, PER_SHARD
from benchmarks.object_store.whole_loader import jpegs, write

LIMIT = 180  # seconds a loader may take


def compare(bench: Bench, server: Nginx, work: Path, interpreter: str, repeats: int, count: int = COUNT) -> None:
    """Measure every loader.

    Parameters
    ----------
    bench : Bench
    server : Nginx
        Serves `work`.
    work : Path
    interpreter : str
        Python with the ``peers`` extra; our loader runs in the present one.
    repeats : int
        Epochs of each mode.
    count : int
        Images; a multiple of ``BATCH``.

    Raises
    ------
    GateError
        The results of a loader are wrong, or ours does not run. Another loader that does not run is skipped by name.
    """
    bucket = work / "bucket"
    write(bucket / "peers", count, PER_SHARD, genetics=False)
    expected = sorted(zlib.crc32(jpeg) for jpeg in jpegs(count))
    medians: dict[str, dict[str, float]] = {}
    for name in LOADERS:
        before = server.requests()
        program = python()[0] if name == "mrmfast" else interpreter
        try:
            results = _measured(program, name, server.url, bucket, repeats, count)
        except RuntimeError as error:
            bench.skip(name, str(error))
            if name == "mrmfast":
                bench.gate("mrmfast: runs", False)
            continue
        bench.gate(f"{name}: the JPEG bytes of all {count:,} samples", results["sums"] == [expected] * repeats)
        bench.gate(f"{name}: {count:,} images decoded", results["images"] == [count] * repeats)
        bench.gate(f"{name}: images are {KIND[-1]} {tuple(KIND[:-1])}", results["kinds"] == [KIND] * repeats)
        requests = (server.requests() - before) / (2 * repeats)
        medians[name] = {mode: float(np.median(seconds)) for mode, seconds in results["seconds"].items()}
        for mode, seconds in medians[name].items():
            bench.figure(f"{name}, {mode}, cold", count / seconds, "images/s")
            if name != "mrmfast":
                bench.figure(f"mrmfast / {name}, {mode}", seconds / medians["mrmfast"][mode], "")
        bench.figure(f"{name}: requests per 20 samples", 20 * requests / count, "")


def _measured(program: str, name: str, url: str, bucket: Path, repeats: int, count: int) -> dict[str, Any]:
    """Run one loader's process and return its results.

    Raises
    ------
    RuntimeError
        The process fails or takes longer than ``LIMIT``; with the reason.
    """
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    arguments = [name, url, str(bucket), str(repeats), str(count)]
    command = [program, "-m", "benchmarks.object_store.peers", *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took longer than {LIMIT} s") from None
    if done.returncode:
        raise RuntimeError(_reason(done.stderr))
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def _reason(output: str) -> str:
    """Return the line of a failed process's output that names the error, not the lines of its workers after it."""
    lines = output.strip().splitlines() or ["no message"]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    return (errors or lines)[-1][:400]
