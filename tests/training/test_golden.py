"""Committed losses of twenty training steps: a refactor must not move them, and no processor can (``golden_run.py``).

Two comparisons hold the two precisions. float64 repeats the committed values to 1e-9. float32, by the fast CPU kernels,
is compared with float64 at the same weights, so that rounding does not grow from step to step. Its bound follows from
rounding. A product of n terms in float32 is off by about sqrt(n) u of its size, with u = 2^-24 (Higham and Mary 2019,
probabilistic analysis); the errors of L products in a row add up as sqrt(L). So what the decoders predict, and the
pooled tokens, whose sizes are of order 1, are off by e = sqrt(L n) u in the root mean square. Every part of the loss is
a mean of squares d^2 of such values or of differences of two cosines of them, and mean (d + e)^2 differs from mean d^2
by at most 2 sqrt(mean d^2) e + e^2 (Cauchy and Schwarz). Rounding can also move an entry of a relation across the
threshold. The hashed weights spread logits by about 1, so neighbours among the N = 17 of a row lie about 1 / N apart:
some N e of the rows, 2 in 10,000, change by one entry of 1 / N. In the mean over rows that is e again, not more.
"""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.helpers.common import ROOT
from tests.helpers.golden_run import FORMER_NAMES, GOLDEN, PARTS, STEPS, Float64, build, run, uniform, weight_name

pytestmark = pytest.mark.slow

FLOAT64 = 1e-9
# Longest product: the SNN and ViT's 4 D = 768 terms. Products in a row, by the longest path: 4 encoder blocks
# of 6 (qkv, scores, values, projection, two of the feed-forward part), 4 of two cross relations, 2 decoder blocks of 6,
# 2 ends.
LONGEST, IN_A_ROW = 768, 4 * 6 + 2 * 4 + 2 * 6 + 2
ROUNDING = math.sqrt(LONGEST * IN_A_ROW) * 2.0**-24

# Pairs of settings that between them cover one and two threads, both instruction sets and oneDNN on and off. The
# variables of MKL and oneDNN make their products those of an older processor.
OTHER_PROCESSORS = {
    "two threads": ({"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2"}, True),
    "no vector instructions": (
        {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
        True,
    ),
    "AVX2 without oneDNN": ({"ATEN_CPU_CAPABILITY": "avx2"}, False),
    "two threads, no vector instructions, no oneDNN": (
        {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"},
        False,
    ),
}


def allowed(part: str, golden: dict, step: int) -> float:
    """Return by how much float32 may differ from float64: see the head of this file."""
    if part == "grad_norm":
        # A gradient passes through the network twice, and each of its terms is of the size of what it is a gradient of.
        return 2 * math.sqrt(2) * ROUNDING * golden[part][step]
    parts = [f"loss/{name}" for name in PARTS] if part == "loss" else [part]
    return sum(2 * math.sqrt(golden[name][step]) * ROUNDING + ROUNDING**2 for name in parts)


def compare(history: dict, steps: int) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(history["float64"]) == {"loss", "grad_norm", *(f"loss/{name}" for name in PARTS)}
    for part, values in golden.items():
        exact, fast = (np.array(history[precision][part]) for precision in ("float64", "float32"))
        assert len(values) == STEPS
        assert len(exact) == len(fast) == steps
        values = np.array(values[:steps])
        apart = np.abs(exact - values) / values
        share = np.abs(fast - values) / [allowed(part, golden, step) for step in range(steps)]
        print(f"{part}: float64 off by {apart.max():.1e}; float32 by {share.max():.3f} of what rounding allows")
        assert apart.max() <= FLOAT64, part
        assert share.max() <= 1, part


def test_twenty_steps_give_the_committed_losses():
    compare(run(), STEPS)


@pytest.mark.timeout(900)  # two threads on a busy machine wait for each other
@pytest.mark.parametrize("name", OTHER_PROCESSORS)
def test_another_processor_gives_the_committed_losses(name):
    variables, onednn = OTHER_PROCESSORS[name]
    command = [sys.executable, "tests/helpers/golden_run.py", "--steps", "4", *([] if onednn else ["--without-onednn"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    compare(json.loads(done.stdout), 4)


def test_the_golden_run_computes_in_float64_alone():
    model = build().double()
    kinds = []
    for module in model.modules():
        module.register_forward_hook(
            lambda _, __, output: kinds.append(output.dtype) if isinstance(output, torch.Tensor) else None
        )
    with Float64():
        assert torch.zeros(1).float().dtype == torch.float64
        assert torch.ones(2).mean(dtype=torch.float32).dtype == torch.float64
        assert torch.rand(2).dtype == torch.float32  # dropout draws the same numbers in both precisions
    assert all(parameter.dtype == torch.float64 for parameter in model.parameters())


def test_weights_are_drawn_by_their_former_names(monkeypatch):
    monkeypatch.setitem(FORMER_NAMES, "encoder.", "image.")
    assert weight_name("encoder.norm.weight") == "image.norm.weight"
    assert weight_name("image.norm.weight") == "image.norm.weight"
    drawn = uniform("image.norm.weight", (3, 1000))
    assert torch.equal(drawn, drawn.float().double())
    assert abs(float(drawn.mean())) < 0.05
    assert float(drawn.std()) == pytest.approx(3**-0.5, rel=0.05)
