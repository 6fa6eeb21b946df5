"""Fused relation masking on a GPU that is not there: bytes and arithmetic against the floor, registers, spills.

Method: every kernel is compiled for compute capability 8.0 and 9.0 from the call that would launch it, and registers,
spills and shared memory are read from the cubin. Bytes are counted from what the kernels read and write once per
program; what programs of one head read again in a row is counted apart, because the L2 cache holds it. The floor reads
q, k, v and gradients once and writes results once. Times are bytes over bandwidth and operations over peak, with the
makers' figures below: they are floors, not measurements, and exclude the search for thresholds, which neither counts.
The gate runs the kernels interpreted against the float64 reference, and the search on a million rows against a sort.

    python -m benchmarks.relation.floor [--json FILE] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import Bench, run
from benchmarks.relation.cubin import Resources, compiled_for, resources
from benchmarks.relation.shape import Shape
from mrmfast.atomic import write_aside
from mrmfast.ops.relation_masking import masked_count, operators
from mrmfast.ops.relation_masking import triton as path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Card:
    """Makers' figures (data sheets of the A100 80 GB SXM and the H100 SXM): peaks, not what is reached.

    Attributes
    ----------
    capability : int
    bandwidth : float
        Bytes/s.
    tensor : float
        bfloat16 operations/s, dense.
    shared : int
        Bytes of shared memory that one block can have.
    """

    capability: int
    bandwidth: float
    tensor: float
    shared: int


CARDS = {"A100": Card(80, 2.04e12, 312e12, 163 * 1024), "H100": Card(90, 3.35e12, 989e12, 227 * 1024)}


# ViT-B and ViT-L, image and genome, self and cross: what training launches.
DEFAULTS = {
    "image self": Shape(256, 12, 197, 197, 64),
    "image over genome": Shape(256, 12, 197, 48, 64),
    "genome over image": Shape(256, 12, 48, 197, 64),
    "genome self": Shape(256, 12, 48, 48, 64),
    "image self, ViT-L": Shape(256, 16, 197, 197, 64),
}


@dataclass(frozen=True)
class Work:
    """Bytes and operations of one pass.

    Attributes
    ----------
    floor, design, again : float
        Bytes that must move, that the kernels move, and that programs of one head read again from the L2 cache.
    needed, issued : float
        Tensor operations that the method needs (each product once), and those done: padding and scores computed twice.
    """

    floor: float
    design: float
    again: float
    needed: float
    issued: float


def meta(shape: Shape, tokens: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor without memory that lies as a model's does, (B, H, tokens, d)."""
    return torch.empty(shape.batch, tokens, shape.heads, shape.width, dtype=dtype, device="meta").transpose(1, 2)


def compiled(shape: Shape, capability: int, dtype: torch.dtype = torch.bfloat16) -> list[Resources]:
    """Compile forward and backward of both outputs at `shape`; return what each kernel takes."""
    projections = [meta(shape, n, dtype) for n in (shape.queries, shape.keys, shape.keys)]
    d_out = meta(replace(shape, batch=2 * shape.batch), shape.queries, dtype)
    with compiled_for(capability) as kernels:
        _, rows = operators.run_forward(path, projections, masked_count(0.75, shape.keys), "both")
        operators.run_backward(path, projections, rows, d_out, masked_count(0.75, shape.keys), "both")
    return [resources(kernel) for kernel in kernels]


def work(shape: Shape, dtype: torch.dtype = torch.bfloat16) -> tuple[Work, Work]:
    """Count forward and backward of both outputs."""
    heads, size = shape.batch * shape.heads, dtype.itemsize
    row, key = (heads * n * shape.width * size for n in (shape.queries, shape.keys))  # one tensor of q's or k's kind
    statistic = heads * shape.queries * 4
    product = 2 * heads * shape.queries * shape.keys * shape.width

    def issued(tile_rows: int, tile_keys: int, products: int) -> float:
        rows, keys = (-(-n // tile) * tile for n, tile in ((shape.queries, tile_rows), (shape.keys, tile_keys)))
        return products * 2 * heads * rows * keys * path.padded_to(shape.width)

    row_tiles = [
        path.row_tiles(shape.queries, shape.keys, shape.width, dtype, backward=backward).constants
        for backward in (False, True)
    ]
    key_tiles = path.key_tiles(shape.queries, shape.width, dtype).constants
    programs = [path.row_blocks(heads, shape.queries, tile["ROWS"])[1] for tile in row_tiles]
    key_programs = -(-shape.keys // key_tiles["KEYS"])
    forward = Work(
        floor=3 * row + 2 * key,
        design=3 * row + 2 * key + 2 * statistic,
        again=2 * key * (programs[0] - 1),
        needed=3 * product,
        issued=issued(row_tiles[0]["ROWS"], row_tiles[0]["KEYS"], 3),
    )
    backward = Work(
        floor=(3 + 1) * row + (2 + 2) * key,
        # dQ reads q, k, v and two gradients and writes dQ and delta; the other kernel reads them all and writes dK, dV.
        design=(3 + 1) * row + 2 * key + 3 * statistic + 3 * row + (2 + 2) * key + 3 * statistic,
        again=2 * key * (programs[1] - 1) + (3 * row + 3 * statistic) * (key_programs - 1),
        needed=7 * product,
        issued=issued(row_tiles[1]["ROWS"], row_tiles[1]["KEYS"], 4) + issued(key_tiles["ROWS"], key_tiles["KEYS"], 6),
    )
    return forward, backward


def table(rows: list[list[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def report(bench: Bench) -> str:
    """Compile and count everything; record bars; return the Markdown."""
    text = ["# Relation masking on the GPU, bf16\n\nMade by `python -m benchmarks.relation.floor --markdown FILE`.\n"]
    text.append(str(__doc__))
    cards = ", ".join(
        f"{name} {card.bandwidth / 1e12:.2f} TB/s and {card.tensor / 1e12:.0f} TFLOP/s" for name, card in CARDS.items()
    )
    text.append(f"Assumed peaks: {cards}.\n\n## Bytes and arithmetic\n")
    rows = [["shape", "pass", "floor MB", "moved MB", "from L2 again MB", "needed GFLOP", "issued GFLOP"]]
    rows[0] += [f"{name} ms, bytes / arithmetic" for name in CARDS]
    for name, shape in DEFAULTS.items():
        counted = work(shape)
        for title, one in zip(("forward", "backward"), counted, strict=True):
            rows.append([f"{name}: {shape}", title])
            rows[-1] += [f"{x / 1e6:.0f}" for x in (one.floor, one.design, one.again)]
            rows[-1] += [f"{x / 1e9:.0f}" for x in (one.needed, one.issued)]
            for card in CARDS.values():
                rows[-1].append(f"{one.design / card.bandwidth * 1e3:.2f} / {one.issued / card.tensor * 1e3:.2f}")
        forward, backward = counted
        # An account, not a bar: both sides are counted by hand, from the kernels' code and from the method's page.
        bench.figure(f"{name}: bytes moved / floor, forward", forward.design / forward.floor, "times")
        both = (forward.design + backward.design) / (forward.floor + backward.floor)
        bench.figure(f"{name}: bytes moved / floor, forward + backward", both, "times")
    text.append(table(rows))
    text.append("\n## What the kernels take\n")
    rows = [["shape", "card", "kernel", "warps", "registers", "spilled bytes", "shared bytes", "blocks by registers"]]
    for name, shape in DEFAULTS.items():
        for card_name, card in CARDS.items():
            found = compiled(shape, card.capability)
            for kernel in found:
                numbers = (kernel.warps, kernel.registers, kernel.spilled, kernel.shared, kernel.blocks)
                rows.append([name, card_name, kernel.name, *map(str, numbers)])
            bench.bar(f"{name}, {card_name}: bytes spilled", max(one.spilled for one in found), "<=", 0)
            bench.bar(
                f"{name}, {card_name}: shared memory / limit", max(one.shared for one in found) / card.shared, "<=", 1
            )
    text.append(table(rows))
    return "\n".join(text)


def main() -> int:
    """Check, count, compile, report."""
    parser = argparse.ArgumentParser(description="Relation masking on the GPU against the floor, without a GPU.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="where the tables go")
    options = parser.parse_args()
    bench = Bench("relation masking on the GPU: bytes, arithmetic, registers", options.json)
    folder = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    try:
        run([sys.executable, "-m", "benchmarks.relation.check"], TRITON_INTERPRET="1", PYTHONPATH=folder)
        holds = True
    except RuntimeError as error:
        print(error)
        holds = False
    bench.gate("interpreted kernels are the float64 reference; a million rows' thresholds are exact", holds)
    text = report(bench)
    print(text)
    if options.markdown:
        with write_aside(options.markdown) as file:
            file.write(text)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
