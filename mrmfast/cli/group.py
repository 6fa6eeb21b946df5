"""Commands of the console from a table, and from modules that declare their arguments with argparse."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from mrmfast.command import ArgumentParser, Entry, load
from mrmfast.errors import UserError


def examples_text(examples: Iterable[str], program: str) -> str:
    """Format examples for the end of a help page."""
    # A line with a backspace tells click not to fill the paragraph.
    lines = [example.format(program=program) for example in examples]
    return "\n  ".join(("\b\nExamples:", *lines)) if lines else ""


class TableGroup(click.Group):
    """A group of commands that are loaded on use.

    Parameters
    ----------
    name : str
    entries : mapping of str to Entry
        In the order of the help page.
    hidden : collection of str
        Names that work, but that the help page does not list.
    **options
        Of :class:`click.Group`.
    """

    def __init__(self, name: str, entries: Mapping[str, Entry], hidden: Iterable[str] = (), **options: Any) -> None:
        super().__init__(name, **options)
        self.entries = entries
        self.unlisted = frozenset(hidden)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return [name for name in self.entries if name not in self.unlisted]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments begin with.

        Raises
        ------
        UserError
            There is none of that name.
        """
        if args[0] not in self.entries and not ctx.resilient_parsing and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.entries, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see {ctx.command_path} --help"
            raise UserError(f"no such command: {ctx.command_path} {args[0]}; {hint}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None where the table has no such name."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        if ":" in entry.target:
            command: click.Command = load(entry.target)
            command.short_help = entry.summary
            return command
        return ModuleCommand(cmd_name, entry, ctx.command_path)


class ModuleCommand(click.Command):
    """A module with ``add_arguments(parser)`` and ``run(arguments)`` as a click command.

    The module's parser is the only declaration: it parses, and this class draws the help page and completes option
    names from it.
    """

    def __init__(self, name: str, entry: Entry, program: str) -> None:
        super().__init__(
            name,
            help=f"{entry.summary[:1].upper()}{entry.summary[1:]}.",
            short_help=entry.summary,
            epilog=examples_text(entry.examples, program),
            no_args_is_help=False,
        )
        self.target = entry.target

    def module(self) -> Any:
        """Import the command's module."""
        return load(self.target)

    def parser(self, ctx: click.Context) -> argparse.ArgumentParser:
        """Return the parser that the module declares."""
        parser = ArgumentParser(prog=ctx.command_path, add_help=False)
        self.module().add_arguments(parser)
        return parser

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parser's arguments as click's, for the help page, completion and the reference page."""
        actions = self.parser(ctx)._actions
        parameters = [_parameter(action, ctx) for action in actions if action.help != argparse.SUPPRESS]
        help_option = self.get_help_option(ctx)
        return [*parameters, *([help_option] if help_option else [])]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave the parsing to the module's parser; click parses for completion alone."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        if set(args) & set(self.get_help_option_names(ctx)):
            click.echo(ctx.get_help())
            ctx.exit()
        ctx.params["arguments"] = self.parser(ctx).parse_args(args)
        return []

    def invoke(self, ctx: click.Context) -> int:
        """Run the module."""
        status: int | None = self.module().run(ctx.params["arguments"])
        return status or 0


def _parameter(action: argparse.Action, ctx: click.Context) -> click.Parameter:
    """Describe an argparse action as a click parameter."""
    text = (action.help or "") % {**vars(action), "prog": ctx.command_path}
    several = action.nargs in ("*", "+")
    metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper().replace("_", "-")
    kind: Any = click.Choice([str(choice) for choice in action.choices]) if action.choices else _type(action)
    if not action.option_strings:
        nargs = -1 if several else 1
        return click.Argument(
            [action.dest], type=kind, nargs=nargs, required=action.required, metavar=metavar, help=text
        )
    names = [action.dest, *action.option_strings]
    if action.nargs == 0:
        return click.Option(names, is_flag=True, help=text)
    return click.Option(
        names,
        type=kind,
        multiple=several,
        help=f"{text}  [required]" if action.required else text,
        metavar=None if action.choices else metavar,
    )


def _type(action: argparse.Action) -> click.ParamType:
    """Complete file names where the argument is a path."""
    is_path = action.type is Path or getattr(action.type, "__annotations__", {}).get("return", "").startswith("Path")
    return click.Path() if is_path else click.STRING
