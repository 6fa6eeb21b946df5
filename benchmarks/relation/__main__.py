"""Relation masking on the CPU against two plain attention calls, the eager reference and plain matrix products.

Method: the gate compares outputs and gradients with the float64 reference. Then ours and its peers take turns, call by
call, and medians are compared. Two `scaled_dot_product_attention` calls are what two branches cost without masking: 14
products of N x M x d forward and backward; ours has 10 (scores and softmax are shared), and the selection besides.
Memory: one forward and backward in a child process whose peak resident size is reset before (Linux), so that it
counts outputs, gradients, what is saved and what is used on the way; eager keeps 9 bytes an entry of N x M for its
backward pass (softmax 4, mask 1; in float32 masked softmax 4; in bfloat16 two roundings 2 + 2).

    python -m benchmarks.relation [--json FILE] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import Bench, python
from benchmarks.harness.turns import in_turns
from benchmarks.relation.shape import Shape
from mrmfast.ops.relation_masking import cpu, reference, relation_attention

RATIO = 0.75
EAGER_BYTES = 9  # an entry of N x M; see above
# One rounding to the type's digits; see tests/ops/test_relation_cpu.py.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8}
NAMES = {(True, True): "both outputs", (True, False): "intact", (False, True): "masked"}
Outputs = Sequence[Tensor]


MAIN = Shape(16, 12, 197, 197, 64)
CROSSES = (Shape(16, 12, 197, 48, 64), Shape(16, 12, 48, 197, 64))
GENOME, SMALLEST = Shape(16, 12, 48, 48, 64), Shape(1, 2, 48, 48, 64)


def flop(shape: Shape, outputs: int, backward: bool) -> int:
    """Count operations of ours: scores and an output each; then scores, dP and dV for each output, dQ and dK."""
    products = 1 + outputs + (1 + 2 * outputs + 2 if backward else 0)
    return 2 * shape.entries * shape.width * products


def floor_bytes(shape: Shape, itemsize: int, backward: bool) -> int:
    """Count bytes that must be read and written: q, k, v, both outputs; then their gradients, and q, k, v again."""
    row = shape.batch * shape.heads * shape.width * itemsize
    forward = row * (3 * shape.queries + 2 * shape.keys)
    return forward + (row * (4 * shape.queries + 4 * shape.keys) if backward else 0)


def draw(shape: Shape, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Draw q, k, v as a model's projections give them, and gradients of both outputs.

    q and k are multiples of 1/8, so that logits are exact and float64 selects the same entries.
    """
    generator = torch.Generator().manual_seed(0)

    def heads(n: int, exact: bool) -> Tensor:
        size = (shape.batch, n, shape.heads, shape.width)
        values = torch.randn(size, generator=generator)
        return ((values * 8).round() / 8 if exact else values).to(dtype).transpose(1, 2)

    q, k, v = heads(shape.queries, True), heads(shape.keys, True), heads(shape.keys, False)
    return [x.requires_grad_() for x in (q, k, v)], [heads(shape.queries, False) for _ in range(2)]


def plain(q: Tensor, k: Tensor, v: Tensor, outputs: int) -> Outputs:
    """Attend without masking, once a branch."""
    return [scaled_dot_product_attention(q, k, v) for _ in range(outputs)]


def of(function: Callable[..., tuple[Tensor | None, ...]], form: tuple[bool, bool]) -> Callable[..., Outputs]:
    """Return `function` for one form of the call (intact, masked), as a list of what it gives."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Outputs:
        outputs = function(q, k, v, RATIO, intact=form[0], masked=form[1])
        return [out for out in outputs if out is not None]

    return call


def once(
    function: Callable[..., Outputs], inputs: list[Tensor], gradients: list[Tensor], backward: bool
) -> list[Tensor]:
    """Run forward, and backward where asked."""
    outputs = function(*inputs)
    if not backward:
        return list(outputs)
    return [*outputs, *torch.autograd.grad(outputs, inputs, gradients[: len(outputs)])]


def gate(bench: Bench, shape: Shape, dtype: torch.dtype, form: tuple[bool, bool] = (True, True)) -> None:
    """Compare outputs and gradients of one form of the call with the float64 reference."""
    inputs, gradients = draw(shape, dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = once(of(reference.relation_attention, form), exact, [g.double() for g in gradients], True)
    got = once(of(relation_attention, form), inputs, gradients, True)
    worst = max(float(((a.double() - b).norm() / b.norm()).detach()) for a, b in zip(got, expected, strict=True))
    name = f"{shape}, {dtype}: {NAMES[form]}, dq, dk, dv, worst difference {worst:.1e} <= {BOUNDS[dtype]:.1e}"
    bench.gate(name.replace("torch.", ""), worst <= BOUNDS[dtype])


def compare(bench: Bench, shape: Shape, dtype: torch.dtype, form: tuple[bool, bool], repeats: int) -> None:
    """Time forward, and forward + backward, of ours, plain attention and eager."""
    inputs, gradients = draw(shape, dtype)
    outputs = sum(form)
    functions: dict[str, Callable[..., Outputs]] = {
        "ours": of(relation_attention, form),
        "plain": partial(plain, outputs=outputs),
        "eager": of(reference.relation_attention, form),
    }
    for backward, passes, bound in ((False, "forward", 2.0), (True, "forward + backward", 1.5)):
        calls = {name: partial(once, call, inputs, gradients, backward) for name, call in functions.items()}
        seconds = in_turns(calls, repeats)
        title = f"{NAMES[form]}, {shape}, {dtype}, {passes}".replace("torch.", "")
        bench.figure(f"{title}: ours", seconds["ours"] * 1e3, "ms")
        bench.figure(f"{title}: {outputs} plain attention", seconds["plain"] * 1e3, "ms")
        bench.figure(f"{title}: eager", seconds["eager"] * 1e3, "ms")
        operations = flop(shape, outputs, backward)
        bench.figure(f"{title}: ours, {operations / 1e9:.3g} GFLOP", operations / seconds["ours"] / 1e9, "GFLOP/s")
        if shape == MAIN and outputs == 2:
            floor = floor_bytes(shape, dtype.itemsize, backward)
            bench.figure(f"{title}: inputs and outputs once", floor / 1e6, "MB")
            bench.bar(f"{title} / 2 plain attention", seconds["ours"] / seconds["plain"], "<=", bound)
        if shape in (GENOME, SMALLEST):
            bench.bar(f"{title} / eager", seconds["ours"] / seconds["eager"], "<=", 1.0)


def limits(bench: Bench, shape: Shape, repeats: int) -> None:
    """Report what torch's own products reach, at the size of the scores and at a size that suits them."""
    q, k, _ = (x.detach().contiguous() for x in draw(shape, torch.float32)[0])
    large = torch.randn(1536, 1536)
    seconds = in_turns({"scores": lambda: q @ k.mT, "large": lambda: large @ large}, repeats)
    bench.figure("torch.matmul, 1536 x 1536 x 1536", 2 * 1536**3 / seconds["large"] / 1e9, "GFLOP/s")
    scores = 2 * shape.entries * shape.width / seconds["scores"] / 1e9
    bench.figure(f"torch.matmul, Q K^T of {shape}", scores, "GFLOP/s")


def peak_memory(path: str, dtype: torch.dtype) -> int:
    """Return by how many bytes forward and backward of MAIN raise this process's peak resident size."""
    functions: dict[str, Callable[..., Outputs]] = {
        "ours": of(relation_attention, (True, True)),
        "eager": of(reference.relation_attention, (True, True)),
        "plain": partial(plain, outputs=2),
    }
    function = functions[path]
    once(function, *draw(SMALLEST, dtype), True)  # loads what is loaded at first use
    inputs, gradients = draw(MAIN, dtype)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    once(function, inputs, gradients, True)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def memory(bench: Bench, dtype: torch.dtype) -> None:
    """Compare peaks of ours, plain attention and eager, each in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        bench.skip(f"memory, {dtype}", "needs /proc/self/clear_refs")
        return
    short, peaks = str(dtype).removeprefix("torch."), {}
    for path in ("ours", "plain", "eager"):
        command = python("-m", "benchmarks.relation", "--memory", path, short)
        # A fixed threshold gives each large tensor pages of its own, returned when it is freed.
        done = subprocess.run(
            ["env", "MALLOC_MMAP_THRESHOLD_=262144", *command], check=True, capture_output=True, text=True
        )
        peaks[path] = json.loads(done.stdout)
        bench.figure(f"peak memory, both, {MAIN}, {short}: {path}", peaks[path] / 1e6, "MB")
    kept = EAGER_BYTES * MAIN.entries
    bench.figure(f"N x N bytes that eager keeps, {short}", kept / 1e6, "MB")
    allowed = peaks["eager"] - kept
    bench.bar(f"peak memory, {short}: ours, against eager's less these, MB", peaks["ours"] / 1e6, "<=", allowed / 1e6)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--memory", nargs=2, metavar=("PATH", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory:
        print(peak_memory(options.memory[0], getattr(torch, options.memory[1])))
        return 0
    bench = Bench(f"Relation masking on the CPU, ratio {RATIO}, {torch.get_num_threads()} threads", options.json)
    bench.gate("the compiled path is in use", cpu.available())
    for dtype in BOUNDS:
        for shape in (MAIN, *CROSSES, GENOME, SMALLEST):
            gate(bench, shape, dtype)
    for form in ((True, False), (False, True)):
        gate(bench, MAIN, torch.float32, form)
    for shape in CROSSES:
        gate(bench, shape, torch.float32, (False, True))
    limits(bench, MAIN, options.repeats)
    for dtype in BOUNDS:
        compare(bench, MAIN, dtype, (True, True), options.repeats)
        memory(bench, dtype)
    for form in ((True, False), (False, True)):
        compare(bench, MAIN, torch.float32, form, options.repeats)
    for shape in CROSSES:
        compare(bench, shape, torch.float32, (False, True), options.repeats)
    for shape in (GENOME, SMALLEST):
        compare(bench, shape, torch.float32, (True, True), 4 * options.repeats)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
