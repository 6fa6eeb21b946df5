"""Everything that only a GPU can show, in one table: relation masking, genome unpacking, DALI, a training step.

Method: a gate against the float64 reference comes first, then medians of rounds that take turns; calls are timed by
CUDA events with a cold L2 cache (``triton.testing.do_bench``). Peers: two calls of ``scaled_dot_product_attention`` and
the eager reference for relation masking, the plain PyTorch reference for unpacking, the same step with the eager
relation for training. The copy bandwidth and the matrix product of the same card stand beside them. What a missing
package prevents is skipped by that package's name.

    python -m benchmarks.gpu [--folder benchmarks/results]        or: bash scripts/gpu_check.sh
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import relation_check
from benchmarks.harness import Bench, GateError
from benchmarks.relation_floor import DEFAULTS, table, work
from benchmarks.shape import Shape
from benchmarks.turns import in_turns
from mrmfast.atomic import write_aside
from mrmfast.ops.relation_masking import reference
from mrmfast.ops.relation_masking import triton as path

ROOT = Path(__file__).resolve().parents[1]
TESTS_SECONDS = 270


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `TINY` runs interpreted on a CPU, so that this file cannot rot.

    Attributes
    ----------
    shapes : dict
        Relation masking: name and shape.
    checked : tuple of (B, H, N, M, d)
    thresholds : int
        Rows searched.
    participants, features : int
        Of the genome to unpack.
    images, arch, pixels
        Of the training step.
    rounds : int
    """

    shapes: dict[str, Shape]
    checked: tuple[tuple[int, int, int, int, int], ...]
    thresholds: int
    participants: int
    features: int
    images: int
    arch: str
    pixels: int
    rounds: int


CHECKED = (
    *((2, 12, 197, 197, 64), (2, 12, 197, 48, 64), (2, 12, 48, 197, 64), (2, 3, 50, 50, 80), (1, 2, 65, 17, 128)),
    # Enough samples x heads for a program to go through all rows of a head, as in training.
    *((64, 12, 50, 50, 64), (43, 12, 197, 197, 64)),
)
FULL = Sizes(DEFAULTS, CHECKED, 1_000_000, 256, 26_909, 64, "vit_base_patch16_224", 224, 5)
TINY = Sizes({"tiny": Shape(1, 2, 17, 20, 16)}, ((1, 2, 17, 20, 16),), 2_000, 5, 61, 2, "vit_tiny_patch16_224", 32, 1)

DTYPES = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


def seconds(calls: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, float]:
    """Return the median seconds of each call over rounds in which they take turns."""
    if device != "cuda":
        return in_turns(calls, rounds)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            milliseconds: Any = triton.testing.do_bench(call, warmup=5, rep=30, return_mode="median")
            found[name].append(milliseconds / 1e3)
    return {name: statistics.median(values) for name, values in found.items()}


def limits(bench: Bench, device: str, sizes: Sizes) -> None:
    """Measure what the card itself does: copies and a matrix product."""
    n = 8192 if device == "cuda" else 64
    x, y = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    took = seconds({"copy": lambda: y.copy_(x), "product": lambda: x @ x}, device, sizes.rounds)
    bench.figure("copy bandwidth, read + write", 2 * x.numel() * 2 / took["copy"] / 1e9, "GB/s")
    bench.figure("matrix product, bf16", 2 * n**3 / took["product"] / 1e12, "TFLOP/s")


def relation(bench: Bench, device: str, sizes: Sizes) -> None:
    """Check relation masking, then time it against two plain attention calls and the eager reference."""
    for dtype, bound in DTYPES.items():
        if device == "cpu" and dtype == torch.bfloat16:
            continue  # Triton's interpreter cannot multiply bfloat16
        worst = max(relation_check.error(shape, 0.75, dtype, device) for shape in sizes.checked)
        bench.figure(f"relation masking, {dtype}: largest relative error", worst, "")
        bench.gate(f"relation masking, {dtype}: outputs and gradients within {bound:g} of float64", worst <= bound)
    wrong = relation_check.mismatches(torch.randn(sizes.thresholds, 197, device=device), 148)
    bench.gate(f"thresholds of {sizes.thresholds} rows are exact", wrong == 0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for name, shape in sizes.shapes.items():
        time_relation(bench, name, shape, dtype, device, sizes.rounds)


def time_relation(bench: Bench, name: str, shape: Shape, dtype: torch.dtype, device: str, rounds: int) -> None:
    """Time one shape, forward, then forward + backward."""

    def new(tokens: int) -> Tensor:
        drawn = torch.randn(shape.batch, tokens, shape.heads, shape.width, device=device, dtype=dtype)
        return drawn.transpose(1, 2).requires_grad_()

    q, k, v = new(shape.queries), new(shape.keys), new(shape.keys)
    gradient = torch.randn_like(q)
    functions: dict[str, Callable[[], Any]] = {
        "ours": lambda: path.relation_attention(q, k, v, 0.75),
        "two SDPA": lambda: [scaled_dot_product_attention(q, k, v) for _ in range(2)],
        "eager": lambda: reference.relation_attention(q, k, v, 0.75),
    }

    def forward(function: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> None:
            with torch.no_grad():
                function()

        return call

    def both(function: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(function(), (q, k, v), [gradient, gradient])

    passes = {"forward": forward, "forward + backward": both}
    first, second = work(shape, dtype)
    needed = {"forward": first, "forward + backward": None}
    for title, wrap in passes.items():
        took = seconds({peer: wrap(function) for peer, function in functions.items()}, device, rounds)
        label = f"{name} ({shape}), {title}"
        for peer, value in took.items():
            bench.figure(f"{label}: {peer}", value * 1e3, "ms")
        floor = first.floor if needed[title] else first.floor + second.floor
        flops = first.needed if needed[title] else first.needed + second.needed
        bench.figure(f"{label}: floor bytes / time", floor / took["ours"] / 1e9, "GB/s")
        bench.figure(f"{label}: needed operations / time", flops / took["ours"] / 1e12, "TFLOP/s")
        bench.bar(f"{label}: ours / two SDPA", took["ours"] / took["two SDPA"], "<=", 1.5)
        bench.bar(f"{label}: ours / eager", took["ours"] / took["eager"], "<=", 1)


def unpacking(bench: Bench, device: str, sizes: Sizes) -> None:
    """Check the unpacking of genomes bit for bit, then time it against the plain PyTorch reference."""
    from mrmfast.ops.genome_unpack import reference as plain
    from mrmfast.ops.genome_unpack import triton as fused

    snps, scores = sizes.features * 3 // 10, sizes.features // 50
    kinds = (("snps", "genotype", snps), ("pgs", "float", scores), ("burden", "binary", sizes.features - snps - scores))
    rows, widths = sizes.participants, (-(-snps // 4), scores, -(-kinds[2][2] // 8))
    packed = [torch.randint(0, 256, (rows, width), dtype=torch.uint8, device=device) for width in widths]
    packed[1] = torch.randn(rows, scores, device=device)
    present = torch.rand(rows, 3, device=device) > 0.2
    fill = torch.randn(sizes.features, device=device)
    arguments = (packed, present, kinds, fill)
    got, expected = fused.unpack_genome(*arguments), plain.unpack_genome(*arguments)
    same = all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    bench.gate("unpacking is the reference, bit for bit", same)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: fused.unpack_genome(*arguments),
        "plain": lambda: plain.unpack_genome(*arguments),
    }
    took = seconds(calls, device, sizes.rounds)
    moved = sum(part.numel() * part.element_size() for part in packed) + rows * sizes.features * 5
    bench.figure(f"unpacking {rows} x {sizes.features}: ours", took["ours"] * 1e3, "ms")
    bench.figure("unpacking: bytes / time", moved / took["ours"] / 1e9, "GB/s")
    bench.bar("unpacking: ours / plain PyTorch", took["ours"] / took["plain"], "<=", 1)


def pictures(bench: Bench, device: str, sizes: Sizes) -> None:
    """Decode and warp JPEGs in DALI on the device and compare them with its own CPU path."""
    import numpy as np
    import simplejpeg

    from mrmfast.data.meters import Meters
    from mrmfast.data.pipeline import DALIImages

    side, batch = sizes.pixels, min(sizes.images, 64)
    generator = np.random.default_rng(0)
    smooth = generator.integers(0, 255, (batch, 4, 4, 3), dtype=np.uint8).repeat(side // 4, 1).repeat(side // 4, 2)
    jpegs = [np.frombuffer(simplejpeg.encode_jpeg(np.ascontiguousarray(one)), dtype=np.uint8) for one in smooth]
    matrices = np.tile(np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32), (batch, 1, 1))

    def open_on(name: str) -> DALIImages:
        options: dict[str, Any] = {"batch": batch, "stored_size": side, "size": side, "threads": 2, "depth": 2}
        source: Any = lambda: (jpegs, matrices, None)  # noqa: E731
        return DALIImages(source, device=torch.device(name), meters=Meters(), **options)

    here, cpu = open_on(device), open_on("cpu")
    got, expected = here.run()[0].cpu().float(), cpu.run()[0].float()
    off = float((got - expected).abs().mean())
    bench.gate("DALI on the device is within 3 of 255 of DALI on the CPU, on average", off <= 3)
    took = statistics.median(seconds({"run": here.run}, "cpu", 20 * sizes.rounds).values())
    bench.figure(f"DALI, {batch} of {side} x {side}", batch / took, "images/s")
    here.close()
    cpu.close()


def training_step(bench: Bench, device: str, sizes: Sizes) -> None:
    """Time MRM's forward, backward and update in bf16, with the dispatched relation and with the eager one.

    Weights are bf16, as DeepSpeed makes them for training; its float32 copies and its ZeRO are left out, on both sides.
    """
    from mrmfast.batch import GenomeSpec
    from mrmfast.models import relation as models_relation
    from mrmfast.objectives import OBJECTIVES
    from mrmfast.objectives.mrm import ModelConfig, MRMConfig

    tokens = min(48, sizes.features // 4)
    groups = [len(part) for part in torch.arange(sizes.features).tensor_split(tokens)]
    kinds = (("snps", "genotype", sizes.features),)
    names = tuple(f"snps/{number}" for number in range(tokens))
    spec = GenomeSpec(kinds, tuple(groups), names, torch.ones(sizes.features))
    torch.manual_seed(0)
    model = OBJECTIVES["mrm"](ModelConfig(arch=sizes.arch), MRMConfig(), sizes.pixels, spec).to(device).bfloat16()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    shape = (sizes.images, 3, sizes.pixels, sizes.pixels)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    packed = (torch.randint(0, 256, (sizes.images, -(-sizes.features // 4)), dtype=torch.uint8, device=device),)
    present = torch.ones(sizes.images, 1, dtype=torch.bool, device=device)

    def loss() -> Tensor:
        torch.manual_seed(0)  # the same dropout on both sides
        value: Tensor = model(image, packed, present, 0)[0]
        return value

    def step() -> None:
        loss().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def with_eager(call: Callable[[], Any]) -> Any:
        with patch.object(models_relation, "relation_attention", reference.relation_attention):
            return call()

    def eager() -> None:
        with_eager(step)

    ours, wanted = float(loss().detach()), float(with_eager(loss).detach())
    apart = abs(ours - wanted) / abs(wanted)
    bench.gate(f"the training step's loss is the eager relation's within 1 % ({apart:.1e})", apart <= 0.01)
    took = seconds({"ours": step, "eager relation": eager}, device, sizes.rounds)
    for name, value in took.items():
        bench.figure(f"{sizes.arch}, batch {sizes.images}: step, {name}", value * 1e3, "ms")
    bench.figure(f"{sizes.arch}: training", sizes.images / took["ours"], "images/s")
    bench.bar("training step: ours / eager relation", took["ours"] / took["eager relation"], "<=", 1)


def tests(bench: Bench, device: str, sizes: Sizes) -> None:
    """Run the tests of the kernels on the GPU."""
    if importlib.util.find_spec("pytest") is None:
        raise ModuleNotFoundError("No module named 'pytest'", name="pytest")
    # Without the repository's own options and fixtures, which need packages that may be absent.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--noconftest",
        "-o",
        "addopts=",
        "tests/test_relation_triton.py",
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TESTS_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        bench.skip("tests of the kernels", f"not through in {TESTS_SECONDS} s")
        return
    print(done.stdout[-2000:])
    bench.gate("tests of the kernels pass on the GPU", done.returncode == 0)


SECTIONS: dict[str, Callable[[Bench, str, Sizes], None]] = {
    "limits": limits,
    "relation masking": relation,
    "genome unpacking": unpacking,
    "DALI": pictures,
    "training step": training_step,
}


def measure(bench: Bench, device: str, sizes: Sizes, sections: dict[str, Callable[[Bench, str, Sizes], None]]) -> None:
    """Run the sections; a missing package or a wrong result ends a section, not the rest."""
    for name, section in sections.items():
        print(f"-- {name}", flush=True)
        try:
            section(bench, device, sizes)
        except ModuleNotFoundError as error:
            bench.skip(name, f"{error.name} is not installed")
        except GateError:
            bench.skip(name, "wrong, so not measured")
        if device == "cuda":
            torch.cuda.empty_cache()


def verdict(bench: Bench, status: int) -> int:
    """Return the exit status: kernels whose tests did not run have not passed."""
    tested = not any(name.startswith("tests") for name in bench.skipped)
    return status if tested and all(gate["holds"] for gate in bench.gates) else 1


def markdown(bench: Bench, card: str) -> str:
    """Return gates, bars, figures and what was skipped, with card, driver and versions."""
    smi = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(smi, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    versions = f"torch {torch.__version__}, Triton {triton.__version__}, CUDA {torch.version.cuda}"
    versions += f", Python {platform.python_version()}"
    text = f"# {card}\n\nMade by `bash scripts/gpu_check.sh`: driver {driver}, {versions}.\n"
    gates = [[gate["name"], "yes" if gate["holds"] else "NO"] for gate in bench.gates]
    text += "\n" + table([["gate", "holds"], *gates])
    bars = [[b["name"], f"{b['value']:.3g}", f"{b['op']} {b['bound']:g}", str(b["holds"])] for b in bench.bars]
    text += "\n" + table([["bar", "value", "bound", "holds"], *bars])
    figures = [[f["name"], f"{f['value']:,.4g}", f["unit"]] for f in bench.figures]
    text += "\n" + table([["figure", "value", "unit"], *figures])
    return text + "".join(f"\nSkipped {name}: {reason}.\n" for name, reason in bench.skipped.items())


def main() -> int:
    """Measure on the GPU and write the table; 2 without one."""
    parser = argparse.ArgumentParser(description="Every GPU-only check and benchmark.")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "results", help="where the table goes")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "gpu_check: no CUDA GPU is visible to PyTorch, so nothing was checked or measured (nvidia-smi?)",
            file=sys.stderr,
        )
        return 2
    card = torch.cuda.get_device_name()
    bench = Bench(f"on one {card}")
    options.folder.mkdir(parents=True, exist_ok=True)
    target = options.folder / f"gpu-{'-'.join(card.lower().split())}.md"
    # The tests may take long: what was measured before them is written first.
    rounds: list[dict[str, Callable[[Bench, str, Sizes], None]]] = [SECTIONS, {"tests": tests}]
    for sections in rounds:
        measure(bench, "cuda", FULL, sections)
        with write_aside(target) as file:
            file.write(markdown(bench, card))
    status = bench.finish()
    print(f"table: {os.path.relpath(target)}")
    return verdict(bench, status)


if __name__ == "__main__":
    sys.exit(main())
