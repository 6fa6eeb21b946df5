"""Whether damaged and hostile inputs of genetics end in one line, within bounded time and memory.

``python -m benchmarks.robustness.parsers --json benchmarks/results/parsers.json``

Every parser reads a valid input, then mutated copies of it (seeds 0, 1, ...), in a forked process with a limit of time
and of memory. A case ends in one of these ways: *read* (the mutation is harmless, or gives other valid data), *refused*
(a UserError), or a failure: *traceback*, *memory*, *hang*, *crash* (the process died). The bars are 0 failures.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from benchmarks.harness import Bench
from benchmarks.robustness.parsers.cases import Outcome, run_cases
from benchmarks.robustness.parsers.targets import TARGETS

FAILURES = ("traceback", "memory", "hang", "crash")


def main() -> int:
    """Run the cases of every parser."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=1000, help="mutated inputs per parser (default 1000)")
    parser.add_argument("--parser", choices=sorted(TARGETS), action="append", help="only this one; may repeat")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bench = Bench("failures of mutated inputs, by parser", arguments.json)
    for name in arguments.parser or TARGETS:
        start, *cases = run_cases(name, [None, *range(arguments.cases)])
        bench.gate(f"{name}: the valid input is read", start.kind == "read")
        counts = Counter(case.kind for case in cases)
        for kind in ("read", "refused", *FAILURES):
            bench.figure(f"{name}: {kind}", counts[kind], "cases")
        bench.figure(f"{name}: slowest case", max(case.seconds for case in cases), "s")
        bench.figure(f"{name}: peak memory beyond the start", max(case.megabytes for case in cases), "MB")
        _show([case for case in cases if case.kind in FAILURES])
        bench.bar(f"{name}: failures of {len(cases)}", sum(counts[kind] for kind in FAILURES), "<=", 0)
    return bench.finish()


def _show(failures: list[Outcome]) -> None:
    """Print every distinct failure once, with a seed that gives it."""
    seen: set[str] = set()
    for case in failures:
        if case.text not in seen:
            seen.add(case.text)
            print(f"      seed {case.seed}: {case.kind}: {case.text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
