"""Genetics from files to tensors, side by side with the tools people use.

Question: is every step at least as fast as its best peer, within the memory promised, and are the results equal?
Method: everything is simulated in a temporary folder; a result is compared with an independent one before it is timed;
medians of repeats; peers as commands, whole runs. Command: ``python -m benchmarks.genetics [--json FILE] [--large]``.
bio2zarr lives in an environment of its own (``--plink2zarr PATH``); it and plink2 are skipped by name where absent.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.genetics import commands, store
from benchmarks.harness import Bench, GateError

PARTS: dict[str, Callable[[Bench, Path, argparse.Namespace], None]] = {
    "store": store.gather,
    "unpack": store.unpack,
    "snps": commands.snps,
    "pgs": commands.scores,
    "burden": commands.burden,
}


def main() -> int:
    """Run the parts asked for; return 0 where every bar holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.genetics", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument("--large", action="store_true", help="also a store of 500,000 participants (6 GB of disk)")
    parser.add_argument("--only", choices=[*PARTS, "large"], help="one part")
    parser.add_argument("--repeats", type=int, default=3, help="of whole commands (default 3)")
    parser.add_argument("--work", type=Path, help="where the temporary folder goes (default: the system's)")
    parser.add_argument("--plink2zarr", default=shutil.which("plink2zarr"), help="bio2zarr's command")
    parser.add_argument("--plink2", default=shutil.which("plink2"), help="plink2's command")
    parser.add_argument(
        "--plain-blas",
        type=Path,
        default=Path("/usr/lib/x86_64-linux-gnu/blas"),
        help="folder of libblas.so.3 without OpenBLAS, for plink2 (default: where Debian's libblas3 puts it)",
    )
    arguments = parser.parse_args()
    bench = Bench("genetics", arguments.json)
    parts = dict(PARTS)
    if arguments.large or arguments.only == "large":
        parts["large"] = store.large
    with tempfile.TemporaryDirectory(prefix="mrmfast-bench-", dir=arguments.work) as work:
        for name, part in parts.items():
            if arguments.only in (None, name):
                print(f"-- {name}", flush=True)
                try:
                    part(bench, Path(work) / name, arguments)
                except GateError as error:
                    # A wrong result is a failed bar, and the parts after it still count.
                    bench.bar(f"{name}: correct ({error})", None, ">=", 1)
                shutil.rmtree(Path(work) / name, ignore_errors=True)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
