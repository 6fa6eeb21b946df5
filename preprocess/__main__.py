"""``python -m preprocess COMMAND``: raw files -> dataset folder. ``mrmfast preprocess COMMAND`` is the same command."""

from __future__ import annotations

import argparse
import gc
import sys

from mrmfast.command import ArgumentParser, load, run_command
from preprocess.commands import COMMANDS, limit_threads, protect_files

PROGRAM = "python -m preprocess"


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run one command; return the exit status (2: a user error)."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = argparse.Namespace()

    def call() -> int:
        parse(argv, arguments)
        status: int | None = load(COMMANDS[arguments.command].target).run(arguments)
        return status or 0

    return run_command(call, lambda: getattr(arguments, "out", None))


def parse(argv: list[str], arguments: argparse.Namespace) -> None:
    """Fill `arguments`; only the module of the chosen command is imported and declares its arguments."""
    parser = ArgumentParser(prog=PROGRAM, description="Convert raw files into a dataset folder.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, entry in COMMANDS.items():
        examples = "\n  ".join(("examples:", *entry.examples)).format(program=PROGRAM)
        command = commands.add_parser(
            name,
            help=entry.summary,
            description=entry.summary,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if argv and argv[0] == name:
            load(entry.target).add_arguments(command)
    parser.parse_args(argv, arguments)


if __name__ == "__main__":
    limit_threads(sys.argv[1] if len(sys.argv) > 1 else "")
    protect_files()
    status = main()
    # The process ends here; a garbage collection of all library objects would take 0.1 s.
    gc.freeze()
    sys.exit(status)
