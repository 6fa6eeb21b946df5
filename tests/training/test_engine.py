"""DeepSpeed's engine in bf16 under ZeRO: a step whose gradients are not finite is skipped by their norm alone."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.common import ROOT

pytestmark = pytest.mark.slow

SCRIPT = """
import json, torch
from torch import nn
from mrmfast.training.engine import EngineConfig, initialise_deepspeed, join_world, leave_world

world = join_world(EngineConfig(device="cpu", precision="bf16"))
found = {}
for stage in (1, 2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    engine = initialise_deepspeed(model, optimiser, world, zero_stage=stage, batch_size=2, micro_batch=2, clip=1.0)
    for scale in (1.0, float("inf"), float("nan"), 1.0):
        before = [p.detach().clone() for p in engine.module.parameters()]
        engine.backward((engine(torch.ones(2, 4, dtype=torch.bfloat16)) * scale).sum())
        engine.step()
        after = list(engine.module.parameters())
        moved = not all(torch.equal(a, b) for a, b in zip(before, after))
        finite = all(bool(p.isfinite().all()) for p in after)
        found.setdefault(str(stage), []).append([moved, finite, engine.skipped_steps])
leave_world()
print(json.dumps(found))
"""


def test_gradients_that_are_not_finite_skip_the_step():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for stage in ("1", "2"):
        assert found[stage] == [[True, True, 0], [False, True, 1], [False, True, 2], [True, True, 2]], stage
