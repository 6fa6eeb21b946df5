"""Values of a config: none ends in a traceback, a hang, or a message that leaks Python or a password.

``python -m benchmarks.robustness.config_values --json benchmarks/results/config_values.json``

Every value of :mod:`.hostile_values` is given to ``mrmfast train`` in a forked process with limits of time and memory,
on a dataset of a few images: it is refused, or one step is trained. Mutated config files are read in this process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.harness import Bench
from benchmarks.robustness import hostile_values

ROOT = Path(__file__).resolve().parents[2]
SECONDS, GIGABYTES = 200.0, 10  # limits of a process; of address space, of which libraries take four
SHOWN = 600  # characters of the longest message
# Python's or a library's own words, and passwords.
LEAK = re.compile(r"\{'\w+':|alloc_cpu|enforce fail|\bNoneType\b|object at 0x|<class|SECRET|SEC/RET|RET@|AKIA")
TINY = (
    "data.image_size=32", "model.arch=vit_tiny_patch16_224", "model.depth=3", "model.genome_layers=1", "data.threads=1",
    "batch_size=4", "steps=1",
)  # fmt: skip
DECODER = {
    "mrm": (
        "objective.reconstruct.image_decoder={width: 32, depth: 1, heads: 2}",
        "objective.reconstruct.genome_decoder.width=32",
    ),
    "mae": ("objective.decoder={width: 32, depth: 1, heads: 2}",),
    "simclr": (),
}  # fmt: skip


def write_dataset(folder: Path) -> None:
    """Write 16 images of 8 participants, with 20 scores."""
    import cv2
    import numpy as np

    from mrmfast.formats.genetics import FeatureTable
    from mrmfast.formats.image_shards import Sample, finalise_images, write_shard
    from mrmfast.formats.manifest import SplitRule, claim_splits
    from mrmfast.formats.modality_writer import write_modality

    draw = np.random.default_rng(0)
    claim_splits(folder, SplitRule(0, 0.0))
    ids = [str(1_000_000 + number) for number in range(8)]
    pixels = draw.integers(0, 255, (16, 32, 32, 3), dtype=np.uint8)
    samples = [
        Sample(f"{number:09d}", cv2.imencode(".jpg", image)[1].tobytes(), ids[number // 2], {})
        for number, image in enumerate(pixels)
    ]
    shards = [write_shard(folder, 0, samples)]
    finalise_images(folder, shards, image_size=32, schema={"jpg": "RGB"}, statistics={})
    table = FeatureTable.build([f"PGS{number}" for number in range(20)], ["scores"] * 20)
    write_modality(folder, "pgs", "float", ids, table, [draw.standard_normal((8, 20)).astype(np.float32)])


def train(arguments: list[str], printed: str, folder: str) -> None:
    """Be ``mrmfast train`` in a forked process with limits."""
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    from mrmfast.train import main

    try:
        status = main(arguments)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def outcome(arguments: list[str], folder: Path) -> tuple[str, str]:
    """Return "message", "legal", "traceback", "hang" or "leak", and what was printed."""
    printed = folder / "printed"
    process = multiprocessing.get_context("fork").Process(target=train, args=(arguments, str(printed), str(folder)))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return "hang", printed.read_text(errors="replace")[-300:]
    text = printed.read_text(errors="replace")
    for name in os.listdir(folder):
        if name not in ("dataset", "cache", "printed", "config.yaml"):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return judge(process.exitcode, text), text


def judge(status: int | None, text: str) -> str:
    """Say what an ended process amounts to."""
    errors = [line for line in text.splitlines() if line.startswith("mrmfast: error:")]
    if LEAK.search(text):
        return "leak"
    if status == 0:
        return "legal"
    fine = status == 2 and len(errors) == 1 and len(errors[0]) <= SHOWN and "Traceback" not in text
    return "message" if fine else "traceback"


def arguments_of(key: str, value: str) -> list[str]:
    """Return the command line that gives a key a value, on the tiny config."""
    objective, _, key = key.rpartition(" ")
    name = objective.partition("=")[2] or "mrm"
    start = [f"objective={name}", *DECODER[name]] if key != "objective" else []
    stop = ["--print-config"] if key == "steps" else []  # a long run is legal
    return ["--config", "config.yaml", *stop, *TINY, *start, f"{key}={value}"]


def read_mutations(seed: int, count: int) -> Counter[str]:
    """Read mutated config files in this process; count the outcomes."""
    from mrmfast import config
    from mrmfast.errors import UserError
    from mrmfast.training.settings import TrainConfig

    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        for text in hostile_values.mutations(seed, count, ROOT / "configs"):
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            signal.alarm(10)  # ends the benchmark: a hang
            start = time.monotonic()
            try:
                config.load(TrainConfig, path, [])
                outcomes["legal"] += 1
            except UserError as error:
                message = str(error)
                outcomes["message" if "\n" not in message and len(message) <= SHOWN else "leak"] += 1
            except Exception as error:
                print(f"      {type(error).__name__}: {error}"[:300])
                outcomes["traceback"] += 1
            signal.alarm(0)
            outcomes["hang"] += time.monotonic() - start > 5
    return outcomes


def main() -> int:
    """Try all values; return 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keys", default="", help="only keys that begin with this")
    parser.add_argument("--sample", type=int, help="number of values, drawn with a fixed seed (default: all)")
    parser.add_argument("--mutations", type=int, default=1000)
    arguments = parser.parse_args()
    bench = Bench("values of a config", arguments.json)
    import mrmfast.train  # noqa: F401 - imported once, before the forks

    cases: list[tuple[str, Any]] = [
        (key, value) for key, value in hostile_values.values() if key.rpartition(" ")[2].startswith(arguments.keys)
    ]
    bench.figure("values there are", len(cases), "values")
    if arguments.sample is not None:
        cases = random.Random(0).sample(cases, min(arguments.sample, len(cases)))
    documents = hostile_values.documents() if not arguments.keys else {}
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="config-values-") as name:
        folder = Path(name)
        os.environ.update(MRMFAST_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
        os.environ.update(AWS_EC2_METADATA_DISABLED="true", GLOO_SOCKET_IFNAME="lo", AWS_ACCESS_KEY_ID="x")
        os.environ.update(AWS_SECRET_ACCESS_KEY="x", AWS_ENDPOINT_URL="http://127.0.0.1:9")
        writer = multiprocessing.get_context("fork").Process(target=write_dataset, args=(folder / "dataset",))
        writer.start()
        writer.join()
        plain = (
            f"data: {{path: {folder / 'dataset'}, fetch: {{deadline: 2, stall: 1}}}}\nengine: {{device: cpu}}\n"
            "run: {log_samples: true}\n"
        )
        (folder / "config.yaml").write_text(plain)
        result, text = outcome(arguments_of("seed", "1"), folder)
        bench.gate(
            f"the plain config trains a step ({text[-300:] if result != 'legal' else 'as it should'})",
            result == "legal",
        )
        bench.gate("a traceback would be seen", judge(1, "Traceback (most recent call last)") == "traceback")
        listed = [(arguments_of(key, value), f"{key}={value}") for key, value in cases]
        for number, (command, label) in enumerate(listed):
            result, text = outcome(command, folder)
            outcomes[result] += 1
            report(result, label, text, number, len(listed))
        for label, content in documents.items():
            (folder / "config.yaml").write_bytes(content)
            result, text = outcome(["--config", "config.yaml"], folder)
            outcomes[result] += 1
            report(result, label, text, len(listed), len(listed))
    bench.figure("values tried", sum(outcomes.values()), "values")
    for result in ("message", "legal", "leak", "traceback", "hang"):
        bench.figure(f"values: {result}", outcomes[result], "values")
    mutated = read_mutations(0, arguments.mutations)
    for result in ("message", "legal", "leak", "traceback", "hang"):
        bench.figure(f"mutated files: {result}", mutated[result], "files")
    for result in ("traceback", "hang", "leak"):
        bench.bar(f"values: {result}", outcomes[result], "<=", 0)
        bench.bar(f"mutated files: {result}", mutated[result], "<=", 0)
    return bench.finish()


def report(result: str, label: str, text: str, number: int, total: int) -> None:
    """Print a failure, and now and then how far the benchmark is."""
    if result in ("traceback", "hang", "leak"):
        print(f"      {result}: {label[:80]!a}: {text[-400:]!a}", flush=True)
    elif number % 100 == 0:
        print(f"      {number} of {total}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
