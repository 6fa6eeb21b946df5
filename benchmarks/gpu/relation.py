"""Relation masking on a GPU, for benchmarks.gpu: right first, then timed beside two attention calls and eager code.

The card's own copies and products are measured beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.sizes import Sizes, seconds
from benchmarks.harness import Bench
from benchmarks.relation import check
from benchmarks.relation.floor import work
from benchmarks.relation.shape import Shape
from mrmfast.ops.relation_masking import reference, relation_attention

DTYPES = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


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
        worst = max(check.error(shape, 0.75, dtype, device) for shape in sizes.checked)
        bench.figure(f"relation masking, {dtype}: largest relative error", worst, "")
        bench.gate(f"relation masking, {dtype}: outputs and gradients within {bound:g} of float64", worst <= bound)
    wrong = check.mismatches(torch.randn(sizes.thresholds, 197, device=device), 148)
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
        "ours": lambda: relation_attention(q, k, v, 0.75),
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
