"""``mrmfast preprocess``: the group of preprocessing commands."""

from __future__ import annotations

import importlib
from typing import Any

import click

from mrmfast.cli.group import TableGroup

# By name: the package never imports its tools, and they are not needed to train.
_commands: Any = importlib.import_module("preprocess.commands")


class _PreprocessGroup(TableGroup):
    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Limit the threads of libraries before the command imports them, and the readers of its files."""
        _commands.limit_threads(args[0])
        _commands.protect_files()
        return super().resolve_command(ctx, args)


preprocess = _PreprocessGroup(
    "preprocess",
    _commands.COMMANDS,
    hidden=("check",),  # `mrmfast check`
    help="Turn raw files into a dataset folder. Each command writes a report into DATASET/reports.",
)
