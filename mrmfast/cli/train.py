"""``mrmfast train``: one process, or the launcher with a process per GPU.

``deepspeed mrmfast/train.py``, ``torchrun`` and ``python -m mrmfast.train`` do the same; those reach several nodes too.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import CompletionItem

from mrmfast.cli import configs
from mrmfast.cli.group import examples_text

EXAMPLES = (
    "{program} train --config ukb_base data.path=DATASET",
    "{program} train --config ukb_base data.path=DATASET --gpus 4 --resume",
    "{program} train --config my.yaml optimiser.lr=3e-4 data.modalities=[snps,pgs]",
    "{program} train --config demo --print-config",
    "{program} train --config demo --gpus 2 engine.device=cpu   # two processes on the CPU",
)


class _TrainCommand(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read ``--resume auto``, which ``mrmfast/train.py`` and its messages use, as ``--resume``."""
        args = ["--resume" if text == "--resume=auto" else text for text in args]
        pairs = zip(["", *args], args, strict=False)
        return super().parse_args(ctx, [text for before, text in pairs if (before, text) != ("--resume", "auto")])


def _complete_config(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    names = [CompletionItem(name) for name in configs.shipped() if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


@click.command(
    cls=_TrainCommand,
    epilog=examples_text(EXAMPLES, "mrmfast") + "\n\nAll keys: docs/reference/config.md.",
)
@click.option(
    "--config",
    required=True,
    metavar="NAME_OR_FILE",
    shell_complete=_complete_config,
    help="a YAML file, or the name of a config that comes with mrmfast (demo, ukb_base, ukb_large, tcga)",
)
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    metavar="N",
    help="number of GPUs, one process each (default: all that are visible); with engine.device=cpu: of processes",
)
@click.option("--resume", is_flag=True, help="resume from the latest complete checkpoint of this run")
@click.option("--print-config", is_flag=True, help="print the resolved config and exit")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", help="keys of the config, e.g. optimiser.lr=3e-4")
def train(config: str, gpus: int | None, resume: bool, print_config: bool, overrides: tuple[str, ...]) -> int:
    """Pre-train an image encoder from a config.

    A run is written to runs/NAME: checkpoints, metrics, figures and encoder.safetensors.
    """
    argv = ["--config", configs.find(config), "--resume", "auto" if resume else "never"]
    argv += ["--print-config"] * print_config
    argv += overrides
    # In a process that a launcher started there is nothing left to start.
    if not print_config and "RANK" not in os.environ:
        from mrmfast.cli import launch

        devices = launch.choose_devices(argv[1], list(overrides), gpus)
        if devices:
            return launch.run(devices, argv)
    from mrmfast.train import main

    return main(argv)
