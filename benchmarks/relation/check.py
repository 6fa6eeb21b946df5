"""Is the GPU path of relation masking right? On a GPU, or interpreted (``TRITON_INTERPRET=1``) at small sizes.

The gate of ``benchmarks.relation.floor`` and ``benchmarks.gpu``. The tests hold more, these are what a speed hangs on.

    TRITON_INTERPRET=1 python -m benchmarks.relation.check
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import triton
import triton.language as tl
from torch import Tensor

from mrmfast.ops.relation_masking import operators, reference, relation_attention
from mrmfast.ops.relation_masking import triton as path
from mrmfast.ops.relation_masking import triton_parts as parts

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:  # tensors are on the CPU, whose own kernels are not what is checked
    operators.DEVICES["cpu"] = operators.DEVICES["cuda"]


@triton.jit
def threshold_kernel(s_ptr, row_ptr, rows, keys, count, ROWS: tl.constexpr, KEYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Search alone: thresholds of s (rows, keys)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    inside = (row < rows)[:, None] & (key < keys)[None, :]
    s = tl.load(s_ptr + row[:, None] * keys + key[None, :], mask=inside, other=float("-inf"))
    threshold = parts.row_thresholds(s, key < keys, row < rows, keys, count)
    tl.store(row_ptr + row, threshold, mask=row < rows)


def mismatches(s: Tensor, count: int) -> int:
    """Count rows of s, float32, (rows, keys), where >= the threshold found is not >= the count-th largest entry."""
    rows, keys = s.shape
    threshold = torch.empty(rows, device=s.device)
    # The interpreter is fast on large arrays, a GPU holds few rows in registers.
    block = (1 << 20) // path.padded_to(keys) if INTERPRETED else 16
    grid = (triton.cdiv(rows, block),)
    threshold_kernel[grid](s, threshold, rows, keys, count, ROWS=block, KEYS=path.padded_to(keys))
    expected = s >= s.topk(count, -1).values[:, -1:]
    return int(((s >= threshold[:, None]) != expected).any(-1).sum())


def results(function: Callable[..., Any], inputs: list[Tensor], gradients: list[Tensor], ratio: float) -> list[Tensor]:
    """Return both outputs and three gradients."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*leaves, ratio)
    torch.autograd.backward(outputs, gradients)
    return [*(x.detach() for x in outputs), *(x.grad for x in leaves if x.grad is not None)]


def error(shape: tuple[int, int, int, int, int], ratio: float, dtype: torch.dtype, device: str) -> float:
    """Return the largest error of outputs and gradients, relative to the norm of the float64 reference's.

    Parameters
    ----------
    shape : (B, H, queries, keys, d)
    ratio : float
    dtype : torch.dtype
    device : str
    """
    batch, heads, queries, keys, width = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def new(tokens: int) -> Tensor:
        return torch.randn(batch, heads, tokens, width, generator=generator).to(dtype)

    q, k, v = new(queries), new(keys), new(keys)
    count = reference.masked_count(ratio, keys)
    # float32 and float64 may rightly differ where the threshold's entry and the next are a rounding apart.
    while 0 < count < keys:
        logits = (q.double() @ k.double().mT).sort(-1, descending=True).values
        near = (logits[..., count - 1] - logits[..., count]) < 1e-5 * logits.abs().amax(-1)
        if not near.any():
            break
        q[near] = new(queries)[near]
    inputs, gradients = [q, k, v], [new(queries), new(queries)]
    got = results(relation_attention, [x.to(device) for x in inputs], [x.to(device) for x in gradients], ratio)
    wide = [[x.to(device).double() for x in group] for group in (inputs, gradients)]
    exact = results(reference.relation_attention, wide[0], wide[1], ratio)
    return max(float((a.double() - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(got, exact, strict=True))


def main() -> int:
    """Check small cases and a million rows; return 1 where one fails."""
    device = "cpu" if INTERPRETED else "cuda"
    shapes = [(1, 2, 50, 50, 64), (1, 1, 48, 197, 80), (1, 2, 65, 17, 32)]
    errors = [error(shape, ratio, torch.float32, device) for shape in shapes for ratio in (0.25, 0.75)]
    with patch.object(path, "MANY_HEADS", 1):  # as in training: one program goes through all rows of a head
        errors += [error(shape, 0.75, torch.float32, device) for shape in shapes]
    generator = torch.Generator(device).manual_seed(0)
    wrong = sum(
        mismatches(torch.randn(500_000, keys, generator=generator, device=device), count)
        for keys, count in ((197, 148), (48, 24))
    )
    print(f"largest error {max(errors):.1e} (float32), {wrong} of 1,000,000 rows wrong")
    return int(max(errors) > 2e-6 or wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
