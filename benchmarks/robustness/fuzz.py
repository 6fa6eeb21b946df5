"""Mutated metadata: each parser gives a value or one line, soon and in little memory.

``python -m benchmarks.robustness.fuzz [--cases 1000] [--seed 0] [--json FILE]``

Seeded mutations of bytes and of JSON values (odd types, huge and negative numbers, NaN, NUL, names that lead elsewhere,
deep nesting) of the manifest, ``state.json``, ``checksums.json``, the sample table, a modality of the genetics, and the
log of a run. A hostile writer seals what it changes, so that half of the mutated manifests and all tables pass the
comparison with their digests and reach the parsers.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench
from mrmfast.data.genetics.store import GenomeStore
from mrmfast.errors import UserError
from mrmfast.formats import checksums, manifest
from mrmfast.formats.sample_table import INDEX, check_table, read_sample_table
from mrmfast.training import checkpoint
from mrmfast.training.run_log import parse_lines

helpers: Any = importlib.import_module("tests.helpers.common")
MEMORY = 8 << 30  # bytes of address space beyond what the process has: shapes must not be believed
SLOW = 5.0  # seconds of one case
ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 10**18, -(10**30), 1.5, float("nan"), float("inf"), 1e308),
    *("", "122", "\0", "../../x", "/etc/passwd", "\ud800", "a" * 10_000, "é", [], {}, [[]], [None], {"": None}),
)
Mutated = tuple[str, Callable[[random.Random], None]]


def mutate_bytes(text: bytes, generator: random.Random) -> bytes:
    """Change, remove, repeat or insert some bytes."""
    raw = bytearray(text)
    for _ in range(generator.randint(1, 3)):
        start = generator.randrange(len(raw) + 1)
        end = min(len(raw), start + generator.randint(1, 20))
        action = generator.randrange(4)
        if action == 0:
            raw[start:end] = generator.randbytes(end - start)
        elif action == 1:
            del raw[start:end]
        elif action == 2:
            raw[start:start] = raw[start:end] * generator.randint(1, 50)
        else:
            raw[start:start] = generator.choice((b"\0", b"\xff\xfe", b"[" * 100_000, b'"', b"{", b"1" * 5000, b"NaN"))
    return bytes(raw)


def mutate_value(document: Any, generator: random.Random) -> Any:
    """Replace, remove or add one value somewhere in a JSON document."""
    node: Any = document
    path: list[tuple[Any, Any]] = []
    while isinstance(node, (dict, list)) and node and (not path or generator.random() < 0.8):
        key = generator.choice(list(node) if isinstance(node, dict) else range(len(node)))
        path.append((node, key))
        node = node[key]
    if not path:
        return generator.choice(ODD)
    parent, key = path[-1]
    action = generator.randrange(10)
    if action == 0 and isinstance(parent, dict):
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[generator.choice(("x", "../x", "\0", ""))] = parent.pop(key)
    elif action == 2:
        deep: Any = 0
        for _ in range(generator.choice((10, 500, 900))):
            deep = [deep]
        parent[key] = deep
    else:
        parent[key] = generator.choice(ODD)
    return document


def mutate_json(text: bytes, generator: random.Random) -> bytes:
    """Mutate the bytes of a JSON file or one to three of its values."""
    if generator.random() < 0.4:
        return mutate_bytes(text, generator)
    document = json.loads(text)
    for _ in range(generator.randint(1, 3)):
        document = mutate_value(document, generator)
    return json.dumps(document).encode()


class Subjects:
    """The parsers, each with an undamaged file to mutate.

    Parameters
    ----------
    work : Path
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.sound = helpers.write_dataset(work / "sound")
        self.text = (self.sound / manifest.NAME).read_bytes()
        self.state = work / "checkpoints" / "step-00000004"
        self.state.mkdir(parents=True)
        state = checkpoint.TrainState(4, 32, 1.5, "f" * 64, 2, 1, "fp32", 4, True)
        self.state_text = json.dumps(vars(state)).encode()
        self.lines = b"".join(
            json.dumps({"step": n, "loss": 1 / n, "keys": ["a"]}).encode() + b"\n" for n in range(1, 9)
        )

    def cases(self) -> dict[str, Callable[[random.Random], object]]:
        """Return the parsers by name; each mutates and parses once."""
        return {
            "manifest": self.parse_manifest,
            "state.json": self.parse_state,
            "checksums.json": self.parse_checksums,
            "sample table": self.parse_table,
            "genetics": self.parse_genetics,
            "log": lambda generator: parse_lines(mutate_bytes(self.lines, generator)),
        }

    def parse_manifest(self, generator: random.Random) -> None:
        """Parse a manifest, of which half are sealed by who changed them, and use it."""
        text = mutate_json(self.text, generator)
        if generator.random() < 0.5:
            with suppress(ValueError, RecursionError, AttributeError):
                document = json.loads(text)
                document.pop("sha256", None)
                document["sha256"] = manifest._seal(document)
                text = json.dumps(document).encode()
        parsed = manifest.Manifest.from_json(text, "dataset.json")
        parsed.to_json()
        parsed.splits.training(["1000001"])

    def parse_state(self, generator: random.Random) -> None:
        """Read the state of a checkpoint."""
        (self.state / checkpoint.STATE).write_bytes(mutate_json(self.state_text, generator))
        checkpoint.read_state(self.state)

    def parse_checksums(self, generator: random.Random) -> None:
        """Compare a folder with a mutated list of digests."""
        folder = self.sound / "genetics.zarr/pgs"
        copy = self.work / "sealed"
        if not copy.exists():
            shutil.copytree(folder, copy)
        (copy / checksums.NAME).write_bytes(mutate_json((folder / checksums.NAME).read_bytes(), generator))
        list(checksums.damage(copy, None))
        checksums.parse_digests((copy / checksums.NAME).read_bytes(), "checksums.json")

    def parse_table(self, generator: random.Random) -> None:
        """Read a sample table of which one file is mutated."""
        copy = self._mutated(self.sound / INDEX, self.work / "table" / INDEX, generator)
        table = read_sample_table(str(copy.parents[1]))
        check_table(table, manifest.read_manifest(self.sound).shards, "table")

    def parse_genetics(self, generator: random.Random) -> None:
        """Open a modality of which one file is mutated, and everything sealed again."""
        dataset = self.work / "genetics"
        copy = self._mutated(self.sound / "genetics.zarr/pgs", dataset / "genetics.zarr/pgs", generator)
        shutil.copyfile(self.sound / manifest.NAME, dataset / manifest.NAME)
        with manifest.updating(dataset) as parsed:
            parsed.genetics["pgs"]["sha256"] = checksums.seal(copy)
        shutil.rmtree(self.work / "cache", ignore_errors=True)
        GenomeStore.open(str(dataset), ["pgs"], cache=str(self.work / "cache"))

    def _mutated(self, folder: Path, copy: Path, generator: random.Random) -> Path:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        path = generator.choice(
            sorted(path for path in copy.rglob("*") if path.is_file() and path.name != checksums.NAME)
        )
        mutate = mutate_json if path.suffix == ".json" else mutate_bytes
        path.write_bytes(mutate(path.read_bytes(), generator))
        return copy


def run(parse: Callable[[random.Random], object], cases: int, seed: int) -> tuple[Counter[str], list[str], float]:
    """Run the cases of a parser.

    Returns
    -------
    Counter
        ``parsed``, ``refused``, ``traceback`` and ``several lines``.
    list of str
        The cases that are neither parsed nor refused in one line.
    float
        Seconds of the slowest.
    """
    counts: Counter[str] = Counter()
    bad, slowest = [], 0.0
    for number in range(cases):
        start = time.perf_counter()
        try:
            parse(random.Random(f"{seed}:{number}"))
            counts["parsed"] += 1
        except UserError as error:
            result = "refused" if "\n" not in str(error) and len(str(error)) < 600 else "several lines"
            counts[result] += 1
            if result != "refused":
                bad.append(f"{number}: {str(error)[:300]}")
        except Exception as error:
            counts["traceback"] += 1
            bad.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
        slowest = max(slowest, time.perf_counter() - start)
    return counts, bad, slowest


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bench = Bench("fuzz: mutated metadata gives a value or one line", arguments.json)
    with tempfile.TemporaryDirectory() as work:
        subjects = Subjects(Path(work))
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
        for name, parse in subjects.cases().items():
            counts, bad, slowest = run(parse, arguments.cases, arguments.seed)
            for result, count in sorted(counts.items()):
                bench.figure(f"{name}: {result}", count, "cases")
            for line in bad[:5]:
                print(f"      {name}: {line}", flush=True)
            bench.gate(f"{name}: some cases are refused", name == "log" or counts["refused"] > 0)
            bench.bar(f"{name}: cases that are neither a value nor one line", len(bad), "<=", 0)
            bench.bar(f"{name}: seconds of the slowest case", slowest, "<=", SLOW)
    bench.figure("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, "GB")
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
