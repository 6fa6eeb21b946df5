"""``mrmfast completion``: the completion script of a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mrmfast.cli.group import examples_text


@click.command(
    epilog=examples_text(('eval "$({program} completion bash)"   # in ~/.bashrc',), "mrmfast"),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), help="the shell to complete in")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands, options and config names."""
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(ctx.find_root().command, {}, "mrmfast", "_MRMFAST_COMPLETE").source())
