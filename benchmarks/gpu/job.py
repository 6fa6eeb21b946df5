"""The main job and its loader on a GPU, for benchmarks.gpu: from JPEGs and packed genetics to steps of training."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.sizes import Sizes
from benchmarks.harness import Bench
from benchmarks.harness.servers import free_port

ROOT = Path(__file__).resolve().parents[2]


def dataset(folder: Path, sizes: Sizes) -> Path:
    """Write tiles with 26,909 features a participant: from real photographs where there are any, else from noise."""
    import cv2

    from benchmarks.loader import dataset as loader_data

    photographs = loader_data.find_photographs(None)
    paths = [path for path in sorted(photographs.rglob("*.jp*g")) if path.is_file()][:24] if photographs else []
    opened = [cv2.imread(str(path)) for path in paths]
    images = [cv2.resize(image, (768, 768)) for image in opened if image is not None]
    if not images:
        generator = np.random.default_rng(0)
        coarse = generator.integers(0, 255, (4, 12, 12, 3), dtype=np.uint8)
        images = [cv2.resize(image, (768, 768), interpolation=cv2.INTER_CUBIC) for image in coarse]
    loader_data.write(folder / "tiles", images, sizes.tiles, sizes.pixels, np.random.default_rng(0))
    return folder / "tiles"


def loader(bench: Bench, device: str, sizes: Sizes) -> None:
    """Measure our loader on the GPU and on the CPU, DALI's decoder alone, and torchvision's."""
    with tempfile.TemporaryDirectory(prefix="mrmfast-gpu-") as temporary:
        tiles = dataset(Path(temporary), sizes)
        with_genetics = None
        cases: list[tuple[str, str, int, int, bool]] = [
            ("DALI on the GPU", device, threads, batch, genetics)
            for threads, batch, genetics in ((8, 256, True), (8, 256, False), (8, 64, True))
        ]
        cases += [("CPU path", "cpu", threads, 256, True) for threads in (4, 14)]
        for name, where, threads, batch, genetics in cases:
            speed = _ours(tiles, where, min(threads, os.cpu_count() or 1), min(batch, sizes.tiles), genetics, sizes)
            with_genetics = with_genetics or speed
            join = "with" if genetics else "without"
            bench.figure(f"loader: ours, {name}, {threads} threads, batch {batch}, {join} genetics", speed, "images/s")
        jpegs = _jpegs(tiles)
        for share in (0.65, 0.0, 1.0):
            name = f"loader: DALI decode only, hardware share {share:g}"
            bench.figure(name, _dali(jpegs, device, share, sizes), "images/s")
        bench.figure("loader: torchvision decode_jpeg, batch 256", _torchvision(jpegs, device, sizes), "images/s")
        bench.gate("the loader delivers images", with_genetics is not None and with_genetics > 0)


def _ours(tiles: Path, where: str, threads: int, batch: int, genetics: bool, sizes: Sizes) -> float:
    from mrmfast.data.dataset import DataConfig, open_dataset
    from mrmfast.data.loader import Loader

    config = DataConfig(
        path=str(tiles),
        split="all",
        modalities=None if genetics else [],
        image_size=sizes.pixels,
        threads=threads,
        cache=str(tiles.parent / "cache"),
    )
    options: dict[str, Any] = {"rank": 0, "world": 1, "device": torch.device(where)}
    opened = Loader(open_dataset(config), config, seed=0, batch=batch, micro_batch=batch, **options)
    total = sizes.rounds * sizes.tiles // batch * batch
    with closing(opened.batches(0)) as batches:
        next(batches)
        start, images = time.perf_counter(), 0
        while images < total:
            images += len(next(batches).to(torch.device(where)).keys)
        _finish(where)
        return images / (time.perf_counter() - start)


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _jpegs(tiles: Path) -> list[np.ndarray]:
    from mrmfast.formats.sample_table import read_sample_table

    table, shards = read_sample_table(str(tiles)), sorted((tiles / "images").glob("*.tar"))
    rows = zip(table.shard, table.offset, table.size, strict=True)
    return [np.fromfile(shards[shard], np.uint8, count=size, offset=offset) for shard, offset, size in rows]


def _dali(jpegs: list[np.ndarray], device: str, share: float, sizes: Sizes) -> float:
    from nvidia.dali import fn, pipeline_def

    batch = min(256, len(jpegs))
    options = {"device": "mixed", "hw_decoder_load": share} if device == "cuda" else {"device": "cpu"}

    device_id: Any = 0 if device == "cuda" else None

    @pipeline_def(batch_size=batch, num_threads=8, device_id=device_id, prefetch_queue_depth=2)
    def graph() -> Any:
        encoded = fn.external_source(source=lambda: jpegs[:batch])
        return fn.decoders.image(encoded, **options)

    pipeline = graph()
    pipeline.build()
    pipeline.run()
    rounds = max(2, 8 * sizes.rounds)
    start = time.perf_counter()
    for _ in range(rounds):
        pipeline.run()
    return rounds * batch / (time.perf_counter() - start)


def _torchvision(jpegs: list[np.ndarray], device: str, sizes: Sizes) -> float:
    from torchvision.io import decode_jpeg

    encoded = [torch.from_numpy(jpeg) for jpeg in jpegs[:256]]
    decode_jpeg(encoded, device=device)
    start = time.perf_counter()
    for _ in range(8 * sizes.rounds):
        decode_jpeg(encoded, device=device)
    _finish(device)
    return 8 * sizes.rounds * len(encoded) / (time.perf_counter() - start)


def main_job(bench: Bench, device: str, sizes: Sizes) -> None:
    """Run ``deepspeed mrmfast/train.py`` at each micro-batch; record the second half of its steps."""
    with tempfile.TemporaryDirectory(prefix="mrmfast-gpu-") as temporary:
        folder = Path(temporary)
        tiles = dataset(folder, sizes)
        for micro_batch in sizes.micro_batches:
            entries = run_job(tiles, folder, micro_batch, device, sizes)
            later = entries[len(entries) // 2 :]
            speed = statistics.median(entry["images_per_s"] for entry in later)
            waiting = statistics.median(entry["data_wait"] for entry in later)
            label = f"main job, micro-batch {micro_batch}"
            bench.gate(f"{label}: losses are finite", bool(np.isfinite([entry["loss"] for entry in entries]).all()))
            bench.figure(label, sizes.batch / speed * 1e3, "ms a step")
            bench.figure(f"{label}: training", speed, "images/s")
            bench.figure(f"{label}: waiting for data", waiting, "share of the step")
            utilisation = [entry["mfu"] for entry in later if "mfu" in entry]
            if utilisation:
                bench.figure(f"{label}: MFU", statistics.median(utilisation), "of the card's peak")
    bench.figure("arithmetic: an image, forward and backward", _arithmetic(sizes) / 1e9, "GFLOP")


def _arithmetic(sizes: Sizes) -> int:
    """Count the operations of an image in the main job's model."""
    from benchmarks.training.ukb_genome import ukb_genome
    from mrmfast.models.config import ModelConfig
    from mrmfast.objectives import build_objective
    from mrmfast.objectives.mrm import MRMConfig
    from mrmfast.training.memory import example_inputs, step_flops

    spec = ukb_genome()
    model = build_objective(MRMConfig(), ModelConfig(arch=sizes.arch), sizes.pixels, spec)
    return step_flops(model, example_inputs(model, spec, 1, torch.device("cpu")))[1]


def run_job(tiles: Path, folder: Path, micro_batch: int, device: str, sizes: Sizes) -> list[dict[str, Any]]:
    """Run the main job as a user does; return the entries of its ``metrics.jsonl``."""
    name = f"micro{micro_batch}"
    settings = [f"data.path={tiles}", f"data.image_size={sizes.pixels}", f"model.arch={sizes.arch}"]
    settings += [f"batch_size={sizes.batch}", f"steps={sizes.steps}", f"engine.micro_batch={micro_batch}"]
    settings += [f"run.dir={folder}", f"run.name={name}", f"data.cache={folder / 'cache'}", *sizes.settings]
    command = [str(Path(sys.executable).with_name("deepspeed"))]
    if not Path(command[0]).exists():
        command = [sys.executable, "-m", "deepspeed.launcher.runner"]
    # Another run on the machine may hold the launcher's own port.
    command += [
        "--num_accelerators",
        "1",
        "--master_port",
        str(free_port()),
        "mrmfast/train.py",
        "--config",
        "configs/ukb_base.yaml",
        *settings,
    ]
    changes = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **changes}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the main job ends with status {done.returncode}: {done.stderr.strip()[-600:]}")
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
