"""``mrmfast``: the console command.

This module holds names, summaries and the module that is imported on use; a new command is one line of
:data:`COMMANDS`. Nothing here or above it imports torch or numpy, so that ``mrmfast --help`` answers at once.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import click

from mrmfast import __version__
from mrmfast.cli.group import TableGroup, examples_text
from mrmfast.command import USER_ERROR, Entry, run_command
from mrmfast.errors import UserError

COMMANDS = {
    "preprocess": Entry("mrmfast.cli.preprocess:preprocess", "raw files -> a dataset folder"),
    "check": Entry(
        "preprocess.check", "compare every byte of a dataset with its checksums", ("{program} check DATASET",)
    ),
    "train": Entry("mrmfast.cli.train:train", "pre-train an image encoder"),
    "tokenizer": Entry("mrmfast.cli.tokenizer:tokenizer", "train the codebook of mc-BEiT"),
    "completion": Entry("mrmfast.cli.completion:completion", "print the shell's completion script"),
}

EXAMPLES = (
    "{program} preprocess simulate --out RAW --participants 64",
    "{program} preprocess fundus RAW/fundus --out DATASET",
    "{program} check DATASET",
    "{program} train --config ukb_base data.path=DATASET data.modalities=null",
)


root = TableGroup(
    "mrmfast",
    COMMANDS,
    help="Pre-train encoders of medical images, with or without genetics.",
    epilog=examples_text(EXAMPLES, "mrmfast")
    + "\n\nExit status: 0 done, 1 check found damage, 2 error of the user, 3 some files were skipped, 130 interrupted.",
)
click.version_option(__version__, prog_name="mrmfast")(root)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status (see :data:`mrmfast.command.EXIT_STATUSES`)."""
    status = run_command(lambda: _call(sys.argv[1:] if argv is None else argv))
    # The process ends here, and looking for garbage among all the objects of libraries would take a tenth of a second.
    gc.freeze()
    return status


def _call(argv: list[str]) -> int:
    try:
        status: Any = root.main(args=argv, prog_name="mrmfast", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USER_ERROR
    except click.NoSuchOption as error:
        hint = f"; did you mean {error.possibilities[0]}?" if error.possibilities else ""
        raise _usage_error(f"no such option {error.option_name}{hint}", error.ctx) from error
    except click.UsageError as error:
        raise _usage_error(error.format_message(), error.ctx) from error
    except click.Abort:
        raise KeyboardInterrupt from None
    return status or 0


def _usage_error(message: str, context: click.Context | None) -> UserError:
    message = message.rstrip(".")
    return UserError(f"{message[:1].lower()}{message[1:]}; see {context.command_path if context else 'mrmfast'} --help")
