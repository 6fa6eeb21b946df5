"""The training graph of the demo config compiled against eager on the CPU: equal, then kernels and seconds a step.

Gate: one graph without a break; loss and gradients equal the eager ones to 1e-5 in float32. Then both take turns in one
process, forward and backward, and the medians are compared. Kernels are the loops and templates that Inductor
generates; the eager step's count is that of the ATen operators it calls.

    python -m benchmarks.training.compiled [--mode whole] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import Bench
from benchmarks.harness.turns import in_turns
from benchmarks.training.ukb_genome import ukb_batch, ukb_genome
from mrmfast import config as configs
from mrmfast.objectives import build_objective
from mrmfast.objectives.base import TrainableModule
from mrmfast.training.compile import compile_model
from mrmfast.training.settings import TrainConfig

TOLERANCE = 1e-5


class OperatorCount(TorchDispatchMode):
    """Counts the ATen operators that run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator and run it."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def build(config: TrainConfig) -> TrainableModule:
    """Return the demo's model; the same weights each time."""
    torch.manual_seed(0)
    return build_objective(config.objective, config.model, config.data.image_size, ukb_genome())


def step(model: TrainableModule, batch: Any) -> tuple[Tensor, Tensor]:
    """Run forward and backward; return the loss and all gradients in one vector."""
    image_BCHW, packed, present = batch
    model.zero_grad(set_to_none=True)
    loss, _ = model((image_BCHW,), packed, present, None, 0, 0, 1)
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach(), torch.cat(gradients)


def main(argv: list[str] | None = None) -> int:
    """Measure; return 0 where every bar holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("blocks", "whole"), default="whole", help="what is compiled")
    parser.add_argument("--config", default="configs/demo.yaml", metavar="FILE", help="a training config")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each that are timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    arguments = parser.parse_args(argv)
    bench = Bench(f"compiled ({arguments.mode}) against eager on the CPU", arguments.json)
    config = configs.load(TrainConfig, arguments.config, [])
    batch = ukb_batch(config.batch_size, config.data.image_size)
    eager, compiled = build(config), build(config)
    compile_model(compiled, arguments.mode)
    loss, gradients = step(eager, batch)
    begin = time.perf_counter()
    compiled_loss, compiled_gradients = step(compiled, batch)
    bench.figure("first compiled step, code generation included", time.perf_counter() - begin, "s")
    bench.gate("one graph: no break", not counters["graph_break"])
    bench.gate(f"loss equals the eager one to {TOLERANCE}", float((loss - compiled_loss).abs() / loss) <= TOLERANCE)
    apart = float((gradients - compiled_gradients).norm() / gradients.norm())
    bench.gate(f"gradients equal the eager ones to {TOLERANCE} ({apart:.1e})", apart <= TOLERANCE)
    with OperatorCount() as operators:
        step(eager, batch)
    bench.figure("eager step: ATen operators", operators.count, "")
    bench.figure("compiled step: kernels that Inductor generated", metrics.generated_kernel_count, "")
    calls = {"eager": partial(step, eager, batch), "compiled": partial(step, compiled, batch)}
    seconds = in_turns(calls, arguments.rounds)
    for name, value in seconds.items():
        bench.figure(f"{name} step", value, "s")
    bench.bar("compiled / eager step time", seconds["compiled"] / seconds["eager"], "<=", 1.0)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
