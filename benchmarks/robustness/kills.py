"""Training that is killed again and again ends as the unbroken run does.

``python -m benchmarks.robustness.kills [--kills 300] [--minutes 30] [--json FILE]``

Runs of a tiny model over one rank and over two are killed with SIGKILL at random instants: while starting, between
steps, inside a save, and after one (export and figures). After each kill the same command resumes. Gates: every start
finds a checkpoint that it can load; losses, learning rates, gradient norms, sample keys and the exported encoder of a
completed run are those of the unbroken run, bit for bit; no key comes twice in an epoch or is missing; no partial file
is left.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench

helpers: Any = importlib.import_module("tests.helpers.common")  # tiny datasets, ranks as forked processes

STEPS, EVERY, BATCH = 12, 3, 8
INSTANTS = ("starting", "step", "save", "export")
LONGEST = 500.0  # seconds of one attempt
SAME = ("step", "epoch", "loss", "lr", "grad_norm")


@dataclass
class Sweep:
    """Kills of runs over `ranks` ranks.

    Attributes
    ----------
    work : Path
    dataset : Path
    ranks : int
    generator : Random
    kills : Counter
        By instant.
    unloadable, changed, leftovers, completed : int
    """

    work: Path
    dataset: Path
    ranks: int
    generator: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    unloadable: int = 0
    changed: int = 0
    leftovers: int = 0
    completed: int = 0
    startup: float = 0.0

    def unbroken(self) -> Path:
        """Train without a kill; return the run's folder."""
        self.startup = time.perf_counter()
        folder = self.work / f"unbroken-{self.ranks}"
        ranks = helpers.start(*self._arguments(folder.name), ranks=self.ranks)
        while not _lines(folder / "metrics.jsonl"):
            time.sleep(0.01)
        self.startup = time.perf_counter() - self.startup
        done = ranks.wait(LONGEST)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return folder

    def broken(self, number: int, unbroken: Path, most: int) -> None:
        """Kill one run until it has had `most` kills or completes, then let it complete and compare it."""
        name = f"broken-{self.ranks}-{number}"
        folder, kills = self.work / name, 0
        while True:
            arguments = [*self._arguments(name), "--resume", "auto"]
            ranks = helpers.start(*arguments, ranks=self.ranks)
            instant = self.generator.choice(INSTANTS)
            if kills < most and self._wait_for(instant, folder, ranks):
                ranks.kill()
                kills += 1
                self.kills[instant] += 1
                continue
            done = ranks.wait(LONGEST)
            if done.returncode or "damaged" in done.stderr:
                self.unloadable += 1
                print(done.stderr[-2000:], flush=True)
                return
            break
        self.completed += 1
        self.changed += not _same(folder, unbroken)
        self.leftovers += sum(1 for path in folder.rglob(".*.partial"))
        shutil.rmtree(folder)

    def _wait_for(self, instant: str, folder: Path, ranks: Any) -> bool:
        """Wait until the instant has come; return False if the run ends before it."""
        saves, log = folder / "checkpoints", folder / "metrics.jsonl"
        begun, lines = time.perf_counter(), _lines(log)
        stale, newest = _inodes(saves, ".step-*"), _inodes(saves, "step-*")
        early = self.generator.uniform(0, self.startup)
        lines += self.generator.randint(0, 4)
        while time.perf_counter() - begun < LONGEST:
            passed = time.perf_counter() - begun
            if instant == "starting" and passed > early:
                return True
            if instant == "step" and _lines(log) > lines:
                time.sleep(self.generator.uniform(0, 0.2))
                return True
            if instant == "save" and _inodes(saves, ".step-*") - stale:
                time.sleep(self.generator.uniform(0, 0.15))
                return True
            if instant == "export" and _inodes(saves, "step-*") - newest:
                time.sleep(self.generator.uniform(0, 0.4))
                return True
            if not any(process.is_alive() for process in ranks._processes):
                return False
            time.sleep(0.002)
        return True

    def _arguments(self, name: str) -> list[str]:
        settings = {"steps": STEPS, "run.checkpoint_every": EVERY, "batch_size": BATCH}
        return helpers.tiny_run(self.work, self.dataset, name, **settings)


def _inodes(folder: Path, pattern: str) -> set[int]:
    inodes = set()
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            inodes.add(path.stat().st_ino)
    return inodes


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _same(folder: Path, unbroken: Path) -> bool:
    """Compare a completed run with the unbroken one."""
    metrics = [
        [{key: entry.get(key) for key in SAME} for entry in map(json.loads, (run / "metrics.jsonl").open())]
        for run in (folder, unbroken)
    ]
    samples = [(run / "samples.jsonl").read_bytes() for run in (folder, unbroken)]
    encoders = [(run / "encoder.safetensors").read_bytes() for run in (folder, unbroken)]
    return all(first == second for first, second in (metrics, samples, encoders)) and _once(folder)


def _once(folder: Path) -> bool:
    """Return whether no key comes twice in an epoch, and none is missing in a complete one."""
    keys: dict[int, list[str]] = {}
    for line in map(json.loads, (folder / "samples.jsonl").open()):
        keys.setdefault(line["epoch"], []).extend(line["keys"])
    most = max(map(len, keys.values()))
    complete = [epoch for epoch in keys if epoch < max(keys)]
    return all(len(set(of)) == len(of) for of in keys.values()) and all(len(keys[epoch]) == most for epoch in complete)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bench = Bench("kills: SIGKILL at random instants of training, then resume", arguments.json)
    until = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        dataset = helpers.write_dataset(Path(folder) / "ds")
        sweeps = [Sweep(Path(folder), dataset, ranks, random.Random(arguments.seed + ranks)) for ranks in (1, 2)]
        unbroken = [sweep.unbroken() for sweep in sweeps]
        bench.gate("the unbroken runs hold every key once an epoch", all(map(_once, unbroken)))
        number = 0
        while sum(sweep.kills.total() for sweep in sweeps) < arguments.kills and time.monotonic() < until:
            for sweep, reference in zip(sweeps, unbroken, strict=True):
                sweep.broken(number, reference, most=8)
            number += 1
            print({sweep.ranks: dict(sweep.kills) for sweep in sweeps}, flush=True)
    return _finish(bench, sweeps)


def _finish(bench: Bench, sweeps: list[Sweep]) -> int:
    for sweep in sweeps:
        for instant in INSTANTS:
            bench.figure(f"{sweep.ranks} ranks: kills, {instant}", sweep.kills[instant], "kills")
        bench.figure(f"{sweep.ranks} ranks: runs completed after their kills", sweep.completed, "runs")
    bench.figure("kills", sum(sweep.kills.total() for sweep in sweeps), "kills")
    bench.bar("unloadable checkpoints", sum(sweep.unloadable for sweep in sweeps), "<=", 0)
    bench.bar("completed runs that differ from the unbroken run", sum(sweep.changed for sweep in sweeps), "<=", 0)
    bench.bar("partial files left in completed runs", sum(sweep.leftovers for sweep in sweeps), "<=", 0)
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
