"""Every kind of file, damaged in every way: what a reader gets is right, or nothing.

``python -m benchmarks.robustness.corruption [--seed 0] [--share 1.0] [--json FILE]``

Files of a dataset (in a folder and behind HTTP), of the node's cache and of checkpoints x a bit, a hole of zeros,
truncation, missing, swapped with a sibling, an extra copy. After each case the content that training reads (keys, JPEG
bytes, splits, genetics; files of the checkpoint) is compared with the undamaged one. ``silent`` counts other content
without an error, and an intact dataset that reads wrong afterwards through the same cache. ``preprocess check`` sees
each damaged dataset too. Last, the cost: seconds per GB of hashing beside the disk, and the loader's speed with and
without it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench
from benchmarks.robustness import cost, subjects
from benchmarks.robustness.damage import KINDS, damage, siblings
from mrmfast.storage import retry, shard_fetch

helpers: Any = importlib.import_module("tests.helpers.common")  # tiny datasets, ranks as forked processes
OUTCOMES = ("refused", "healed", "no effect", "silent", "traceback")


@dataclass
class Matrix:
    """Outcomes of the cases.

    Attributes
    ----------
    generator : Random
    share : float
        Share of the cases to run.
    counts : Counter
        By (subject, kind, outcome).
    bad : list of str
        Cases that are silent, end with a traceback, or are refused by a line that names no file.
    """

    generator: random.Random
    share: float = 1.0
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def run(
        self,
        subject: str,
        folder: Path,
        fresh: Callable[[], Path],
        read: Callable[[], str],
        right: set[str],
        afterwards: Callable[[str, Path], str | None] = lambda kind, path: None,
    ) -> None:
        """Damage every file of `folder` in every way.

        Parameters
        ----------
        subject : str
        folder : Path
            Undamaged.
        fresh : callable
            Makes the copy that is damaged and returns it.
        read : callable
            Reads the copy: :func:`benchmarks.robustness.subjects.outcome`.
        right : set of str
        afterwards : callable
            Takes the kind and the file; returns what else is wrong.
        """
        for path, sibling in siblings(subjects.files_of(folder)):
            for kind in KINDS:
                if self.generator.random() >= self.share:
                    continue
                copy = fresh()
                target = copy / path.relative_to(folder)
                other = None if sibling is None else copy / sibling.relative_to(folder)
                if not damage(kind, target, other, self.generator):
                    continue
                result, text = subjects.outcome(read, right)
                names = [path.stem, *([sibling.stem] if sibling else [])]
                told = any(name in text for name in names) and "\n" not in text
                problem = afterwards(kind, path)
                self.counts[subject, kind, result] += 1
                if result in ("silent", "traceback") or problem or (result == "refused" and not told):
                    self.bad.append(f"{subject}, {kind}, {path.relative_to(folder)}: {result} {text} {problem or ''}")
                    print(self.bad[-1], flush=True)

    def total(self, subject: str, result: str) -> int:
        """Count the cases of a subject with a result."""
        return sum(count for (of, _, ended), count in self.counts.items() if of == subject and ended == result)


def dataset_cases(matrix: Matrix, work: Path) -> int:
    """Damage a dataset in a folder; return the number of cases that ``check`` does not find."""
    sound = helpers.write_dataset(work / "sound")
    subjects.add_reports(sound)
    copy, cache = work / "copy", work / "cache"
    right = subjects.dataset_content(str(sound), work / "reference")
    missed = 0

    def fresh() -> Path:
        shutil.rmtree(cache, ignore_errors=True)
        return subjects.copy(sound, copy)

    def afterwards(kind: str, path: Path) -> str | None:
        nonlocal missed
        # Beside dataset.json, other files are no part of the dataset.
        detected = check(copy) != 0 or (kind == "extra" and path.parent == sound)
        missed += not detected
        subjects.copy(sound, copy)
        ended, _ = subjects.outcome(lambda: subjects.dataset_content(str(copy), cache), {right})
        poisoned = None if ended == "no effect" else f"the intact dataset then reads: {ended}"
        return poisoned or (None if detected else "check does not find it")

    matrix.run("dataset", sound, fresh, lambda: subjects.dataset_content(str(copy), cache), {right}, afterwards)
    return missed


def remote_cases(matrix: Matrix, work: Path) -> None:
    """Damage a dataset behind HTTP, where names cannot be listed."""
    sound = helpers.write_dataset(work / "sound")
    retry.MISMATCHES, shard_fetch.TRIES = 1, 1  # wrong bytes stay wrong here
    right = subjects.dataset_content(str(sound), work / "reference")
    copy, cache = work / "copy", work / "cache"

    def fresh() -> Path:
        shutil.rmtree(cache, ignore_errors=True)
        return subjects.copy(sound, copy)

    with subjects.served(work) as url:
        matrix.run("dataset over HTTP", sound, fresh, lambda: subjects.dataset_content(f"{url}/copy", cache), {right})


def cache_cases(matrix: Matrix, work: Path) -> None:
    """Damage the node's cache: packed genetics, stamps, downloaded shards."""
    sound = helpers.write_dataset(work / "sound")
    other = helpers.write_dataset(work / "other", participants=20)
    warm, cache = work / "warm", work / "cache"
    with subjects.served(work) as url:

        def read(folder: Path) -> str:
            return subjects.dataset_content(str(sound), folder) + subjects.dataset_content(f"{url}/sound", folder)

        subjects.dataset_content(str(other), warm)
        right = read(warm)

        def fresh() -> Path:
            subjects.copy(warm, cache)
            subjects.dataset_content(str(other), cache)
            read(cache)  # a copy has other inodes: verified again before it is damaged
            return cache

        matrix.run("cache", warm, fresh, lambda: read(cache), {right})


def checkpoint_cases(matrix: Matrix, work: Path) -> None:
    """Damage the checkpoints of a run over two ranks."""
    dataset = helpers.write_dataset(work / "ds")
    arguments = helpers.tiny_run(work, dataset, **{"run.checkpoint_every": 2, "run.keep": 2})
    done = helpers.train(*arguments, ranks=2)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    folder, copy = work / "run/checkpoints", work / "copy"
    newest, previous = subjects.checkpoint_content(subjects.copy(folder, copy)), copy / "step-00000002"
    shutil.rmtree(copy / "step-00000004")
    right = {newest, subjects.checkpoint_content(copy)}
    assert previous.exists()
    matrix.run(
        "checkpoint", folder, lambda: subjects.copy(folder, copy), lambda: subjects.checkpoint_content(copy), right
    )


def check(dataset: Path) -> int:
    """Return the exit status of ``preprocess check``."""
    main = importlib.import_module("preprocess.__main__").main
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return int(main(["check", str(dataset)]))


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="share of the cases to run")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bench = Bench("corruption: every kind of file, damaged in every way", arguments.json)
    matrix = Matrix(random.Random(arguments.seed), arguments.share)
    with tempfile.TemporaryDirectory() as work:
        missed = dataset_cases(matrix, Path(work, "dataset"))
        checkpoint_cases(matrix, Path(work, "checkpoint"))
        cache_cases(matrix, Path(work, "cache"))
        remote_cases(matrix, Path(work, "remote"))
    for subject in sorted({of for of, _, _ in matrix.counts}):
        for kind in KINDS:
            counts = {result: matrix.counts[subject, kind, result] for result in OUTCOMES}
            for result, count in counts.items():
                if count:
                    bench.figure(f"{subject}: {kind}: {result}", count, "cases")
    bench.figure("cases", matrix.counts.total(), "cases")
    bench.figure("share of all cases, drawn by the seed", arguments.share, "")
    bench.gate("some case of every subject is refused or healed", matrix.counts.total() > 0)
    for result in ("silent", "traceback"):
        total = sum(count for (_, _, ended), count in matrix.counts.items() if ended == result)
        bench.bar(f"cases that are {result}", total, "<=", 0)
    bench.bar("damaged datasets that check does not find", missed, "<=", 0)
    bench.bar("other faults: no file named, more than one line, a poisoned cache", len(matrix.bad), "<=", 0)
    with tempfile.TemporaryDirectory() as work:
        cost.measure(bench, Path(work))
    return bench.finish()


if __name__ == "__main__":
    raise SystemExit(main())
