"""Mutated tars, indexes, images and JPEGs: each is read or refused in one line, in bounded time and memory.

``python -m benchmarks.robustness.images [--inputs 1000] [--json FILE]``

Each input is a valid file of which some bytes are changed, cut out, repeated or cut off at the end, by a seed. JPEGs go
through both image backends, which must agree on the verdict and, where they decode, on the image.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import Bench
from mrmfast.batch import ViewSpec
from mrmfast.data.images.augment import resolve_views, warp_matrices
from mrmfast.data.images.backend import Backend, DecodedBatch, DecodeRequest, DecodeSpec, open_images
from mrmfast.errors import UserError
from mrmfast.formats.jpeg import jpeg_fault
from mrmfast.meters import Meters
from preprocess.__main__ import main as preprocess
from preprocess.images.foreign_tar import images_of, read_members
from preprocess.images.image_file import read_image
from preprocess.images.outcome import Unreadable

SIDE, BATCH, SHARDS = 64, 50, 50
FORMATS = ("JPEG", "PNG", "TIFF", "PPM", "BMP", "WEBP")


def mutate(content: bytes, seed: int, head: int = 1 << 30) -> bytes:
    """Change, remove, repeat or cut off some bytes of the first `head` bytes of a file."""
    generator, data = random.Random(seed), bytearray(content)
    for _ in range(generator.choice((1, 2, 8, 40))):
        start = generator.randrange(max(1, min(head, len(data))))
        length = generator.choice((1, 1, 1, 4, 64))
        kind = generator.choice(("byte", "byte", "extreme", "remove", "repeat", "cut"))
        if kind == "byte":
            data[start : start + 1] = bytes([generator.randrange(256)])
        elif kind == "extreme":
            data[start : start + 4] = generator.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
        elif kind == "remove":
            del data[start : start + length]
        elif kind == "repeat":
            data[start:start] = data[start : start + length]
        elif generator.random() < 0.2:
            del data[start:]
    return bytes(data)


def smooth_image(seed: int) -> Image.Image:
    """A smooth image."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def saved(seed: int, kind: str, **options: bool) -> bytes:
    """The image as a file."""
    file = io.BytesIO()
    smooth_image(seed).save(file, kind, **options)
    return file.getvalue()


def tar_of(samples: int) -> bytes:
    """A tar of stock WebDataset."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(samples):
            participant = json.dumps({"participant": str(1000 + number)}).encode()
            for extension, content in (("jpg", saved(number, "JPEG")), ("json", participant)):
                header = tarfile.TarInfo(f"{number:04d}.{extension}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return file.getvalue()


def read_tar(path: Path) -> str:
    """Read a tar as ``index`` does."""
    for image in images_of(path, read_members(path), None):
        jpeg_fault(image.jpeg)
    return "read"


def read_file(path: Path) -> str:
    """Read a image as the preprocessors do."""
    read_image(path)
    return "read"


class Trial:
    """Outcomes and longest time of many inputs."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.longest = 0.0
        self.failures: list[str] = []

    def run(self, name: str, call: Callable[[], str]) -> None:
        """Count one input; anything but a refusal in one line is a failure."""
        began = time.perf_counter()
        try:
            outcome = call()
        except (UserError, Unreadable) as error:
            outcome = "refused" if "\n" not in str(error) else "several lines"
        except Exception as error:  # what a user would see as a traceback
            outcome = "traceback"
            self.failures.append(f"{name}: {type(error).__name__}: {error}")
        self.outcomes[outcome] += 1
        self.longest = max(self.longest, time.perf_counter() - began)


def files(folder: Path, inputs: int, contents: list[bytes], head: int, read: Callable[[Path], str]) -> Trial:
    """Read mutated files."""
    trial, path = Trial(), folder / "input"
    for seed in range(inputs):
        path.write_bytes(mutate(contents[seed % len(contents)], seed, head))
        trial.run(f"seed {seed}", lambda: read(path))
    return trial


def indexes(folder: Path, inputs: int) -> Trial:
    """Mutate the DALI indexes of a dataset: ``check`` must name each one that changed."""
    trial = Trial()
    for number in range(SHARDS):
        (folder / f"{number:03d}.tar").write_bytes(tar_of(2))
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        assert preprocess(["index", str(folder)]) == 0, printed.getvalue()
    whole = {path: path.read_bytes() for path in sorted(folder.glob("*.idx"))}
    for first in range(0, inputs, SHARDS):
        changed = set()
        for seed, (path, content) in enumerate(whole.items(), start=first):
            path.write_bytes(mutate(content, seed))
            changed |= {path.name} if path.read_bytes() != content else set()

        def check(changed: set[str] = changed) -> str:
            printed = io.StringIO()
            with redirect_stdout(printed), redirect_stderr(printed):
                preprocess(["check", str(folder)])
            unseen = {name for name in changed if name not in printed.getvalue()}
            return "unseen" if unseen else "named"

        trial.run(f"seeds from {first}", check)
    return trial


def decode(backend: Backend, jpegs: list[np.ndarray]) -> DecodedBatch:
    """Decode a batch without a change of geometry."""
    views = resolve_views((ViewSpec(),), size=SIDE, rotation=0.0, flip=0.0)
    spec = DecodeSpec(views, len(jpegs), SIDE, torch.device("cpu"), threads=1, depth=1)
    request = DecodeRequest(jpegs, (warp_matrices(np.zeros(len(jpegs)), np.zeros(len(jpegs), bool), SIDE),))
    images = open_images(backend, lambda: request, spec, Meters())
    try:
        return images.run()
    finally:
        images.close()


def backends(inputs: int) -> tuple[Trial, Counter[str]]:
    """Decode mutated JPEGs on both backends; return the trial and the counts of differences."""
    trial, differences = Trial(), Counter[str]()
    sources = [saved(0, "JPEG"), saved(1, "JPEG", progressive=True), saved(2, "JPEG", optimize=True)]
    for first in range(0, inputs, BATCH):
        jpegs = [
            np.frombuffer(_same_size(mutate(sources[seed % 3], seed), sources[seed % 3]), np.uint8)
            for seed in range(first, min(first + BATCH, inputs))
        ]
        results: dict[str, DecodedBatch] = {}
        names: tuple[Backend, Backend] = ("cpu", "dali")

        def run(names: tuple[Backend, Backend] = names, results: dict[str, DecodedBatch] = results) -> str:
            results |= {name: decode(name, jpegs) for name in names}  # noqa: B023 - called at once
            return "decoded"

        trial.run(f"seeds from {first}", run)
        if len(results) == 2:
            cpu, dali = results["cpu"], results["dali"]
            grey = (cpu.views[0].int() - dali.views[0].int()).abs().amax(dim=(1, 2, 3)).numpy()
            for number, jpeg in enumerate(jpegs):
                accepted = "accepted" if jpeg_fault(jpeg.tobytes()) is None else "refused"
                progressive = "progressive" if (first + number) % 3 == 1 else "baseline"
                verdict = bool(cpu.bad[number] != dali.bad[number])
                differences[f"{progressive}, {accepted} by index: inputs"] += 1
                differences[f"{progressive}, {accepted} by index: different verdicts"] += verdict
                differences[f"{progressive}, {accepted} by index: different images"] += bool(
                    grey[number] > 1 and not verdict
                )
    return trial, differences


def _same_size(jpeg: bytes, source: bytes) -> bytes:
    """Return the source where a mutation changed the size: a dataset has images of one size, as ``index`` checks."""
    with io.BytesIO(jpeg) as file:
        try:
            with Image.open(file, formats=("JPEG",)) as header:
                return jpeg if header.size == (SIDE, SIDE) else source
        except Exception:  # no header: all backends must refuse it
            return jpeg


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bench = Bench("mutated tars, indexes, images and JPEGs", arguments.json)
    contents = [saved(seed, kind) for seed, kind in enumerate(FORMATS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dataset").mkdir()
        trials = {
            "tar": files(folder, arguments.inputs, [tar_of(3)], 1 << 30, read_tar),
            "tar headers": files(folder, arguments.inputs, [tar_of(1)], 1100, read_tar),
            "image headers": files(folder, arguments.inputs, contents, 200, read_file),
            "images": files(folder, arguments.inputs, contents, 1 << 30, read_file),
            "idx": indexes(folder / "dataset", arguments.inputs),
        }
    trials["JPEG on two backends"], differences = backends(arguments.inputs)
    for kind, trial in trials.items():
        for outcome, count in sorted(trial.outcomes.items()):
            bench.figure(f"{kind}: {outcome}", count, "inputs" if kind not in ("idx",) else f"x {SHARDS} inputs")
        for failure in trial.failures[:5]:
            print(f"      {kind}, {failure}")
        bench.bar(f"{kind}: tracebacks", trial.outcomes["traceback"], "<=", 0)
        bench.bar(f"{kind}: longest input or batch, s", trial.longest, "<=", 20)
    bench.bar("idx: changed indexes that check does not name", trials["idx"].outcomes["unseen"], "<=", 0)
    for name, count in sorted(differences.items()):
        if name.endswith("inputs"):
            bench.figure(f"JPEG, {name}", count, "inputs")
        else:
            bench.bar(f"JPEG, {name}", count, "<=", 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    bench.bar("peak memory of the process, GB", peak / 1e9, "<=", 3)
    bench.gate("every input is read or refused", not any(trial.failures for trial in trials.values()))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
