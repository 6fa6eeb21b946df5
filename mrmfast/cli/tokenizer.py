"""``mrmfast tokenizer``: train the codebook of mc-BEiT."""

from __future__ import annotations

from pathlib import Path

import click

from mrmfast.cli import configs
from mrmfast.cli.group import examples_text

EXAMPLES = (
    "{program} tokenizer --config objectives/mcbeit --out TOKENIZER.safetensors data.path=DATASET",
    "{program} tokenizer --config demo --out TOKENIZER.safetensors --codes 512 --patches 20000",
)


@click.command(epilog=examples_text(EXAMPLES, "mrmfast"))
@click.option("--config", required=True, metavar="NAME_OR_FILE", help="the config of the pre-training that uses it")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="file to write, ending with .safetensors; a JSON file is written beside it",
)
@click.option("--codes", type=click.IntRange(min=2), default=8192, show_default=True, help="entries of the codebook")
@click.option(
    "--patches", type=click.IntRange(min=20), default=400_000, show_default=True, help="patches to train and test on"
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", help="keys of the config, e.g. data.path=DATASET")
def tokenizer(config: str, out: Path, codes: int, patches: int, overrides: tuple[str, ...]) -> int:
    """Train the tokenizer of mc-BEiT on the training images.

    It replaces the published tokenizer, whose weights do not come with mrmfast.
    """
    from mrmfast.config import load
    from mrmfast.training.settings import TrainConfig
    from mrmfast.training.tokenizer import train_tokenizer

    facts = train_tokenizer(load(TrainConfig, configs.find(config), list(overrides)), out, codes, patches)
    click.echo(
        f"{out}: {codes} codes, perplexity {facts['perplexity']:.1f} on {facts['held_out_patches']} other patches"
    )
    click.echo(f"objective.tokenizer.file={out} objective.tokenizer.sha256={facts['sha256']}")
    return 0
