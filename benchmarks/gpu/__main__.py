"""Everything that only a GPU can show, in one table: tests, kernels, loader, training step, the main job.

Method: a gate of correctness comes first, then medians of rounds in which contenders take turns; kernels are timed by
CUDA events with a cold L2 cache (``triton.testing.do_bench``). Each section is a process of its own with a time budget:
one that fails or takes too long is reported, and the others run. The table is compared with the last one of the same
card, and what differs by more than 10 % is printed.

    python -m benchmarks.gpu [--folder benchmarks/results]        or: bash scripts/gpu_check.sh
    python -m benchmarks.gpu --dry-run --folder /tmp/out          every section on the CPU, in tiny sizes

Exit status: 0 all sections ran, all gates and bars hold; 1 not so; 2 no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu import table as gpu_table
from benchmarks.gpu.goals import goals
from benchmarks.gpu.job import loader, main_job
from benchmarks.gpu.relation import limits, relation
from benchmarks.gpu.sizes import FULL, TINY, Sizes
from benchmarks.gpu.training import decoding, training_step, unpacking
from benchmarks.harness import Bench, GateError

__all__ = ["FULL", "SECTIONS", "TINY", "measure", "verdict"]

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/ops/test_relation_triton.py",)
DRY_RUN_TESTS = "infinities or no_queries or one_pass"  # as pytest's -k: interpreted on a CPU, all would take minutes


@dataclass(frozen=True)
class Section:
    """A part of the table: what measures it, and the seconds it may take on a GPU."""

    measure: Callable[[Bench, str, Sizes], None]
    seconds: int


def tests(bench: Bench, device: str, sizes: Sizes) -> None:
    """Run the tests of the kernels on the device."""
    if importlib.util.find_spec("pytest") is None:
        raise ModuleNotFoundError("No module named 'pytest'", name="pytest")
    # Without the repository's own options, fixtures and plugins, which need packages that may be absent.
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-o", "addopts="]
    command += [*TESTS, *(["-k", DRY_RUN_TESTS] if device == "cpu" else [])]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout[-2000:])
    passed = re.search(r"(\d+) passed", done.stdout)
    some = " (a few, interpreted)" if device == "cpu" else ""
    bench.figure(f"tests of the kernels that passed on {device}{some}", int(passed[1]) if passed else 0, "tests")
    # pytest ends with 5 where it selects none and with 0 where it skips all: neither has checked a kernel.
    bench.gate(
        f"tests of the kernels pass on {device}{some}, at least one", done.returncode == 0 and passed is not None
    )


# The budgets add up to 355 s; most sections need a half of theirs.
SECTIONS = {
    "limits": Section(limits, 15),
    "main job": Section(main_job, 95),
    "training step": Section(training_step, 75),
    "loader": Section(loader, 50),
    "relation masking": Section(relation, 50),
    "genome unpacking": Section(unpacking, 15),
    "DALI": Section(decoding, 15),
    "tests": Section(tests, 40),
}


def measure(bench: Bench, device: str, sizes: Sizes, sections: dict[str, Section]) -> None:
    """Run sections in this process; a missing package or a wrong result ends a section, not the rest."""
    for name, section in sections.items():
        print(f"-- {name}", flush=True)
        try:
            section.measure(bench, device, sizes)
        except ModuleNotFoundError as error:
            bench.skip(name, f"{error.name} is not installed")
        except GateError:
            bench.skip(name, "wrong, so not measured")
        except Exception as error:
            bench.skip(name, f"{type(error).__name__}: {str(error)[:600]}")
        if device == "cuda":
            torch.cuda.empty_cache()


def measure_apart(bench: Bench, device: str, names: list[str], budget: float) -> None:
    """Run each section in a process of its own; one that is killed leaves what it had measured.

    Parameters
    ----------
    bench : Bench
        Collects what the processes report.
    device : {"cuda", "cpu"}
        On the CPU the sizes are tiny.
    names : list of str
        Of sections.
    budget : float
        Share of each section's seconds that it may take.
    """
    with tempfile.TemporaryDirectory(prefix="mrmfast-gpu-") as folder:
        for name in names:
            path = Path(folder) / "section.json"
            path.unlink(missing_ok=True)
            command = [
                sys.executable,
                "-m",
                "benchmarks.gpu",
                "--section",
                name,
                "--device",
                device,
                "--json",
                str(path),
            ]
            seconds = SECTIONS[name].seconds * budget
            reason = _run_section(command, seconds, interpreted=device == "cpu")
            if not path.exists():
                bench.skip(name, reason or "ended without a result")
                continue
            record = json.loads(path.read_text())
            bench.gates += record["gates"]
            bench.bars += record["bars"]
            bench.figures += record["figures"]
            bench.skipped |= record["skipped"]
            if reason:
                bench.skip(name, reason)


def _run_section(command: list[str], seconds: float, interpreted: bool = False) -> str | None:
    """Run a section and all that it starts; return why it failed, or None."""
    changes = {"TRITON_INTERPRET": "1"} if interpreted else {}
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **changes}, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the launcher's ranks too
        process.wait()
        return f"not complete in {seconds:g} s"
    return f"exit status {status}" if status else None


def _correct_interpreter() -> None:
    """Apply the corrections of Triton's interpreter that the tests of the kernels use."""
    sys.path.insert(0, str(ROOT))
    importlib.import_module("tests.helpers.triton_interpreter").correct_bfloat16()


def verdict(bench: Bench, status: int) -> int:
    """Return the exit status: what was skipped has not passed, nor has what checked nothing."""
    passed = bool(bench.gates) and all(gate["holds"] for gate in bench.gates)
    return status if passed and not bench.skipped else 1


def main() -> int:
    """Measure and write the table; 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "results", help="where the table goes")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU in tiny sizes; name a --folder")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections; default all")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section:
        bench = Bench(options.section, options.json)
        sizes = FULL if options.device == "cuda" else TINY
        if options.device == "cpu":
            _correct_interpreter()
        measure(bench, options.device, sizes, {options.section: SECTIONS[options.section]})
        bench.write()
        return 0
    if not options.dry_run and not torch.cuda.is_available():
        print(
            "gpu_check: no CUDA GPU is visible to PyTorch, so nothing was checked or measured (nvidia-smi?)",
            file=sys.stderr,
        )
        return 2
    card = "no card (dry run)" if options.dry_run else torch.cuda.get_device_name()
    before = gpu_table.last_table(ROOT / "benchmarks" / "results", card)
    bench = Bench(f"on one {card}")
    # A CPU that interprets the kernels and shares its cores takes longer than a GPU.
    measure_apart(bench, "cpu" if options.dry_run else "cuda", options.only, 8 if options.dry_run else 1)
    if not options.dry_run and options.only == list(SECTIONS):
        goals(bench)
    table = gpu_table.document(bench, card)
    status = verdict(bench, bench.finish())
    print(f"table: {os.path.relpath(gpu_table.write(options.folder, table))}")
    if before is not None:
        print(f"against {before[0]}, more than {gpu_table.CHANGE:.0%} apart:")
        for line in gpu_table.differences(before[1], table):
            print(f"  {line}")
    return status


if __name__ == "__main__":
    sys.exit(main())
