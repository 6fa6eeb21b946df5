"""What many decoding threads cost each other: the interpreter lock, as far as it can be seen on any machine.

``python -m benchmarks.loader.threads [--threads 1 2 4 8 16] [--seconds 3] [--json FILE]``

Python's part of an image is what one process's CPU time comes to when decoding and warping are excluded: all of it
happens under the interpreter lock, so its inverse is what no number of threads can exceed. Then the CPU path as it is,
by threads: images a second, CPU time an image, and how often a thread went to sleep, which is mostly for the lock.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import simplejpeg
import torch

from benchmarks.harness import Bench
from mrmfast.batch import ViewSpec
from mrmfast.data.images import cpu
from mrmfast.data.images.augment import warp_matrices
from mrmfast.data.images.backend import DecodeRequest, DecodeSpec, Images, open_images
from mrmfast.meters import Meters

SIDE, BATCH, ROUNDS = 224, 256, 7
MOST_PYTHON = 0.02  # of an image's CPU time, on the same machine in the same minute


def open_cpu(threads: int) -> Images:
    """Open the CPU path on one batch of simulated images, given again and again."""
    generator = np.random.default_rng(0)
    smooth = generator.integers(0, 255, (16, 14, 14, 3), dtype=np.uint8).repeat(SIDE // 14, 1).repeat(SIDE // 14, 2)
    jpegs = [np.frombuffer(simplejpeg.encode_jpeg(np.ascontiguousarray(one)), np.uint8) for one in smooth]
    batch = [jpegs[number % len(jpegs)] for number in range(BATCH)]
    matrices = warp_matrices(generator.uniform(-20, 20, BATCH), generator.random(BATCH) < 0.5, SIDE)
    spec = DecodeSpec((ViewSpec(SIDE),), BATCH, SIDE, torch.device("cpu"), threads, depth=3)
    return open_images("cpu", lambda: DecodeRequest(batch, (matrices,)), spec, Meters())


class NoWarp:
    """The compiled library with nothing in it."""

    def warp_group(self, *_: object) -> None:
        """Do nothing."""


@contextmanager
def without_work() -> Iterator[None]:
    """Exclude what runs without the lock: decoding and warping."""

    def decode(jpeg: np.ndarray, *_: object, buffer: np.ndarray, **__: object) -> np.ndarray:
        return buffer[: SIDE * SIDE * 3].reshape(SIDE, SIDE, 3)

    with (
        patch.object(simplejpeg, "decode_jpeg", decode),
        patch.object(cpu, "library", NoWarp),
    ):
        yield


def cpu_time(batches: int) -> float:
    """Return microseconds of CPU time an image, of one thread: the least of a few rounds."""
    with closing(open_cpu(1)) as images:
        times = []
        for _ in range(ROUNDS):
            began = time.process_time()
            for _ in range(batches):
                images.run()
            times.append((time.process_time() - began) / (batches * BATCH))
    return min(times[1:]) * 1e6


def measure(threads: int, seconds: float) -> dict[str, float]:
    """Run the CPU path for a while."""
    with closing(open_cpu(threads)) as images:
        for _ in range(4):
            images.run()
        before, began, pictures = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            images.run()
            pictures += BATCH
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "images/s": pictures / took,
        "us of CPU": used / pictures * 1e6,
        "sleeps a picture": (after.ru_nvcsw - before.ru_nvcsw) / pictures,
    }


def main() -> int:
    """Run it; return 0 where Python's part is within its bound."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader.threads", description=__doc__)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each number of threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    arguments = parser.parse_args()
    bench = Bench("CPU path of the loader by threads", arguments.json)
    with without_work():
        python = cpu_time(20)
    whole = cpu_time(1)
    bench.figure("Python under the interpreter lock, a picture", python, "us")
    bench.figure("CPU time of a picture", whole, "us")
    bench.bar("Python under the lock / CPU time of a picture", python / whole, "<=", MOST_PYTHON)
    for threads in arguments.threads:
        for unit, value in measure(threads, arguments.seconds).items():
            bench.figure(f"{threads} threads: {unit}", value, unit)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
