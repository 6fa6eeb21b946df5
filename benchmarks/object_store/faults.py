"""Every sample arrives once and complete over a faulty network; the time that each fault costs.

``python -m benchmarks.object_store.faults [--runs 200] [--json FILE]``

Small epochs (fetch and hash every sample, no decoding) from nginx through a proxy that breaks a fifth of the answers in
one of ten ways, seeded; a fresh cache each run. Half of the runs are of small shards, half of large ones, which come in
several ranges. Gates: the proxy without faults changes nothing; a client without checks and retries fails under each
of the ten; a changed sample is detected; each of the ten occurs in some answer.
"""

from __future__ import annotations

import argparse
import http.client
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import Bench
from benchmarks.harness.servers import nginx
from benchmarks.object_store import dataset
from benchmarks.object_store.fault_proxy import KINDS, FaultProxy
from mrmfast.meters import Meters
from mrmfast.storage import shard_fetch
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.source import DatasetSource

SHARDS, SAMPLES, SIZE = 6, 40, 12_000
LARGE = (2, 200, 12_000)  # two of 2.4 MB, in several requests
REQUEST = 1 << 20  # bytes a request here, so that a large shard is a few MB
CONFIG = FetchConfig(requests=4, stall=0.4, deadline=30)
SHARE = 0.2  # of answers with a fault
LATE = 0.2  # seconds; an answer of loopback takes a hundredth


def epoch(url: str, cache: Path, seed: int, meters: Meters) -> tuple[Counter[int], int, int]:
    """Fetch an epoch in a random order; return how often each sample came, how many there are, how many were wrong."""
    came: Counter[int] = Counter()
    wrong = expected = 0
    with DatasetSource(url, str(cache), config=CONFIG, meters=meters) as source:
        shards = source.manifest().shards
        random.Random(seed).shuffle(shards)
        source.prefetch(shards)
        for shard in shards:
            expected += shard.samples
            for number, digest in dataset.read(source.local(shard), shard.samples):
                came[number] += 1
                wrong += DIGESTS.get(number) != digest
            source.release(shard)
    return came, expected, wrong


DIGESTS: dict[int, bytes] = {}  # number of a sample -> its SHA-256


def run(
    url: str, upstream: int, seed: int, choose: Callable[[str], str | None]
) -> tuple[float, Counter[int], int, int]:
    """Run one epoch behind a proxy with an empty cache; seconds and what :func:`epoch` returns."""
    with tempfile.TemporaryDirectory() as cache, FaultProxy(("127.0.0.1", upstream), choose) as proxy:
        start = time.perf_counter()
        came, expected, wrong = epoch(f"{proxy.url}/{url}", Path(cache), seed, Meters())
        return time.perf_counter() - start, came, expected, wrong


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bench = Bench("faults: small epochs through a network that breaks a fifth of the answers", arguments.json)
    shard_fetch.REQUEST = REQUEST
    with tempfile.TemporaryDirectory() as work, nginx(Path(work)) as server:
        for name, shape in (("small", (SHARDS, SAMPLES, SIZE)), ("large", LARGE)):
            _, digests = dataset.write(Path(work) / name, *shape)
            DIGESTS.clear()
            DIGESTS.update(enumerate(digests))
            _, came, expected, wrong = run(name, server.port, 0, lambda path: None)
            exact = came == Counter(range(expected)) and expected == len(digests) and not wrong
            bench.gate(f"{name}: without a fault, every sample comes once and right", exact)
            once(bench, name, server.port, arguments.runs // 2)
        _, digests = dataset.write(Path(work) / "one", 1, SAMPLES, SIZE)
        DIGESTS.update(enumerate(digests))
        harmful(bench, server.port, Path(work) / "one/images/shard-000000.tar")
        costs(bench, server.port)
    return bench.finish()


def harmful(bench: Bench, port: int, shard: Path) -> None:
    """See that each fault harms who doesn't look, and that :func:`epoch`'s check of samples can fail."""
    whole = shard.read_bytes()
    for kind in KINDS:
        with FaultProxy(("127.0.0.1", port), lambda path, kind=kind: kind) as proxy:  # type: ignore[misc]
            start = time.perf_counter()
            try:
                with urllib.request.urlopen(f"{proxy.url}/one/images/{shard.name}", timeout=1) as answer:
                    right = answer.read() == whole
            except (OSError, http.client.HTTPException):
                right = False
            late = time.perf_counter() - start > LATE
        bench.gate(f"{kind}: a client that doesn't look is harmed", late if kind == "slow" else not right)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0x10
    shard.with_suffix(".damaged").write_bytes(damaged)
    wrong = sum(DIGESTS[number] != digest for number, digest in dataset.read(shard.with_suffix(".damaged"), SAMPLES))
    bench.gate("one changed byte is one wrong sample", wrong == 1)


def once(bench: Bench, name: str, port: int, runs: int) -> None:
    """Count lost, repeated and wrong samples over runs with random faults."""
    lost = repeated = wrong = failed = 0
    faults: Counter[str] = Counter()
    seconds = []
    for seed in range(runs):
        draw = random.Random(f"{name} {seed}")

        def choose(path: str, draw: random.Random = draw) -> str | None:
            fault = draw.choice(KINDS) if draw.random() < SHARE else None
            faults[fault or "none"] += 1
            return fault

        try:
            took, came, expected, bad = run(name, port, seed, choose)
        except Exception as error:
            print(f"run {seed}: {type(error).__name__}: {error}", flush=True)
            failed += 1
            continue
        seconds.append(took)
        lost += expected - len(came)
        repeated += sum(came.values()) - len(came)
        wrong += bad
    if runs >= 50:  # fewer runs may miss a kind by chance
        bench.gate(f"{name}: every kind of fault occurs in some answer", set(KINDS) <= set(faults))
    for kind in (*KINDS, "none"):
        bench.figure(f"{name}: answers with fault {kind}", faults[kind], "")
    bench.figure(f"{name}: seconds an epoch, median", statistics.median(seconds), "s")
    bench.figure(f"{name}: seconds an epoch, longest", max(seconds), "s")
    for what, count in (("failed runs", failed), ("lost", lost), ("repeated", repeated), ("silently wrong", wrong)):
        bench.bar(f"{name}: {what}, {runs} runs", count, "<=", 0)


def costs(bench: Bench, port: int, repeats: int = 5) -> None:
    """Seconds that one fault of each kind adds to fetching one shard."""

    def first(kind: str | None) -> Callable[[str], str | None]:
        left = [kind]
        return lambda path: left.pop() if path.endswith(".tar") and left else None

    def seconds(kind: str | None) -> float:
        return statistics.median(run("one", port, 0, first(kind))[0] for _ in range(repeats))

    without = seconds(None)
    bench.figure("one shard without a fault", without, "s")
    for kind in KINDS:
        bench.figure(f"cost of {kind}", seconds(kind) - without, "s")


if __name__ == "__main__":
    sys.exit(main())
