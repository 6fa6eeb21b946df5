"""Two ranks at every ZeRO stage, compiled against eager: the same losses, and generated code found again.

Runs ``deepspeed mrmfast/train.py`` on the CPU with a tiny MRM that has every kind of block: a relation block, a plain
block, decoder blocks, SNN layers. All runs share one cache. Gates: the losses of all steps equal those of an eager run
without ZeRO; a run whose graphs an earlier run has compiled compiles none. Seconds are those of the complete run, start
included.

    python -m benchmarks.training.compiled_zero [--modes blocks whole] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import Bench

# Relative, over all steps. A compiled graph sums in another order: a gradient differs by 1e-6 of its size, and AdamW
# turns that into more where a gradient is close to 0.
TOLERANCE = 1e-5
STEPS, RANKS = 6, 2
SETTINGS = {
    "steps": STEPS,
    "model.depth": 2,
    "model.genome_layers": 1,
    "model.alpha_dropout": 0.05,
    "objective.mask.blocks": 1,
    "optimiser.warmup": 1.0,
}


class Case(NamedTuple):
    """A run: what is compiled, at which ZeRO stage, whether blocks are run again in the backward pass."""

    mode: str
    stage: int
    recompute: bool = False

    def __str__(self) -> str:
        """Return the case as a label of the table."""
        return f"ZeRO {self.stage}, {self.mode}{', activation checkpointing' if self.recompute else ''}"


CASES = (
    Case("blocks", 0),
    Case("blocks", 1, recompute=True),
    Case("blocks", 2, recompute=True),
    Case("blocks", 3),
    Case("blocks", 3, recompute=True),
    Case("whole", 0),
    Case("whole", 1),
    Case("whole", 2),
    Case("whole", 1, recompute=True),
)


def run(folder: Path, case: Case, number: int) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Run one case as a user does.

    Returns
    -------
    losses : ndarray of float, (STEPS,)
    seconds : float
        Of the complete run.
    graphs : (int, int)
        How many graphs rank 0 compiled in its first step, and how many it read from the cache.
    """
    common: Any = importlib.import_module("tests.helpers.common")  # tests are not typed
    settings = {**SETTINGS, "engine.zero_stage": case.stage, "engine.compile": case.mode}
    settings["engine.activation_checkpointing"] = str(case.recompute).lower()
    arguments = common.tiny_run(folder, folder / "dataset", name=f"run{number}", **settings)
    start = time.perf_counter()
    done = common.launch(*arguments, ranks=RANKS, timeout=3600, environment={"MRMFAST_CACHE": str(folder / "cache")})
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{case}: exit status {done.returncode}: {done.stderr[-3000:]}")
    entries = common.read_jsonl(folder / f"run{number}" / "metrics.jsonl")
    match = re.search(r"(\d+) graphs compiled, (\d+) read", done.stderr)
    compiled, read = map(int, match.groups()) if match else (0, 0)
    return np.array([entry["loss"] for entry in entries]), seconds, (compiled, read)


def main(argv: list[str] | None = None) -> int:
    """Run all cases; return 0 where every gate holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    parser.add_argument("--modes", nargs="+", default=["blocks", "whole"], choices=("blocks", "whole"))
    arguments = parser.parse_args(argv)
    bench = Bench("two ranks compiled at every ZeRO stage, against eager ones", arguments.json)
    with tempfile.TemporaryDirectory(prefix="mrmfast-compiled-") as temporary:
        folder = Path(temporary)
        importlib.import_module("tests.helpers.common").write_dataset(folder / "dataset")
        off = Case("off", 0)
        eager, seconds, _ = run(folder, off, len(CASES))
        bench.gate(f"{off}: {STEPS} losses that fall", bool(eager[-1] < eager[0]))
        bench.figure(str(off), seconds, "s")
        known: set[tuple[str, bool, bool]] = set()
        for number, case in enumerate(CASES):
            if case.mode not in arguments.modes:
                continue
            losses, seconds, (compiled, read) = run(folder, case, number)
            apart = float((np.abs(losses - eager) / eager).max())
            bench.gate(f"{case}: losses equal the eager ones to {TOLERANCE} ({apart:.1e})", apart <= TOLERANCE)
            # Checkpointing wraps a compiled block from outside; in the complete graph it is a part of it. ZeRO 3 hands
            # a graph gathered parameters, the other stages hand it the same ones.
            graphs = (case.mode, case.recompute and case.mode == "whole", case.stage == 3)
            label = f"{case}: {compiled} graphs compiled, {read} read from the cache"
            bench.gate(label, compiled == 0 < read if graphs in known else compiled > 0)
            known.add(graphs)
            bench.figure(str(case), seconds, "s")
            bench.write()
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
