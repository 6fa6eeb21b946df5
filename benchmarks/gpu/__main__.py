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
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import triton

from benchmarks.gpu.relation import limits, relation
from benchmarks.gpu.sizes import FULL, TINY, Sizes
from benchmarks.gpu.training import pictures, training_step, unpacking
from benchmarks.harness import Bench, GateError
from benchmarks.relation.floor import table
from mrmfast.atomic import write_aside

__all__ = ["FULL", "SECTIONS", "TINY", "markdown", "measure", "verdict"]

ROOT = Path(__file__).resolve().parents[2]
TESTS_SECONDS = 270
Section = Callable[[Bench, str, Sizes], None]


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
        "tests/ops/test_relation_triton.py",
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TESTS_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        bench.skip("tests of the kernels", f"not through in {TESTS_SECONDS} s")
        return
    print(done.stdout[-2000:])
    bench.gate("tests of the kernels pass on the GPU", done.returncode == 0)


SECTIONS: dict[str, Section] = {
    "limits": limits,
    "relation masking": relation,
    "genome unpacking": unpacking,
    "DALI": pictures,
    "training step": training_step,
}


def measure(bench: Bench, device: str, sizes: Sizes, sections: dict[str, Section]) -> None:
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
    rounds: list[dict[str, Section]] = [SECTIONS, {"tests": tests}]
    for sections in rounds:
        measure(bench, "cuda", FULL, sections)
        with write_aside(target) as file:
            file.write(markdown(bench, card))
    status = bench.finish()
    print(f"table: {os.path.relpath(target)}")
    return verdict(bench, status)


if __name__ == "__main__":
    sys.exit(main())
