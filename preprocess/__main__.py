"""``python -m preprocess COMMAND``: from raw files to a dataset folder.

Each command is a module with ``add_arguments(parser)`` and ``run(arguments)``; it is imported only when it is
called, so that ``fundus`` does not need the genetics libraries and the other way round.
"""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import os
import sys

from mrmfast.errors import UserError

COMMANDS = {
    "simulate": ("preprocess.simulate", "write a simulated biobank (photographs, genotypes, scores, phenotypes)"),
    "fundus": ("preprocess.images.fundus.command", "fundus photographs -> image shards"),
    "pathology": ("preprocess.images.pathology.command", "slide tiles or whole slides -> image shards"),
    "index": ("preprocess.images.index", "WebDataset tars of another tool -> a dataset, without rewriting them"),
    "snps": ("preprocess.genetics.snps.command", "PLINK genotypes -> packed SNPs"),
    "pgs": ("preprocess.genetics.pgs.command", "PGS Catalog scoring files + genotypes -> polygenic scores"),
    "burden": ("preprocess.genetics.burden.command", "VEP-annotated VCF -> one bit per gene"),
    "expression": ("preprocess.genetics.expression.command", "TCGA expression, copy number, mutations -> genetics"),
    "report": ("preprocess.report.page", "one HTML page about the genetics of a dataset"),
    "check": ("preprocess.check", "compare every byte of a dataset with its checksums"),
}


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run one command; return the exit status (2: the user can mend it)."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m preprocess", description="Raw files in, a dataset folder out.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if argv and argv[0] == name:
            try:
                importlib.import_module(module).add_arguments(sub)
            except ImportError as error:
                print(
                    f"mrmfast: error: {error}; install the tools with pip install 'mrmfast[preprocess]'",
                    file=sys.stderr,
                )
                return 2
    arguments = parser.parse_args(argv)
    try:
        return importlib.import_module(COMMANDS[arguments.command][0]).run(arguments) or 0
    except UserError as error:
        print(f"mrmfast: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = error.filename or getattr(arguments, "out", "the target")
        print(f"mrmfast: error: {where}: no space left on device; free space or choose another --out", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mrmfast: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if sys.argv[1:2] != ["pgs"]:
        # NumPy's BLAS starts a thread a core when it is imported, and pgs alone multiplies matrices.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    status = main()
    # The process ends here, and looking for garbage among all the objects of libraries would take a tenth of a second.
    gc.freeze()
    sys.exit(status)
