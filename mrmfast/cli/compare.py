"""``mrmfast compare``: one command for a table of methods; killed and run again, it continues."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from mrmfast.cli import configs
from mrmfast.cli.group import examples_text

EXAMPLES = (
    "{program} compare compare/demo",
    "{program} compare my.yaml --out runs/table1 data.path=DATASET",
    "{program} compare my.yaml --list > jobs.txt          # a line per job, for a Slurm array",
    "{program} compare my.yaml --cell mae-0               # one job",
    "{program} compare my.yaml --report                   # only the table, from the cells that are done",
)


@click.command(epilog=examples_text(EXAMPLES, "mrmfast") + "\n\nHow to write a plan: docs/guides/compare.md.")
@click.argument("plan", metavar="PLAN")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", default="comparison", metavar="FOLDER", show_default=True, help="runs, cells and the report")
@click.option("--cell", "name", metavar="NAME", help="run only this cell, e.g. mae-0")
@click.option("--gpus", type=click.IntRange(min=1), metavar="N", help="as for train")
@click.option("--list", "only_list", is_flag=True, help="print a command for each cell that is missing, and exit")
@click.option("--report", "only_report", is_flag=True, help="only write the report of the cells that are done")
@click.option("--budget", "only_budget", is_flag=True, help="only print what the comparison costs")
def compare(
    plan: str,
    overrides: tuple[str, ...],
    out: str,
    name: str | None,
    gpus: int | None,
    only_list: bool,
    only_report: bool,
    only_budget: bool,
) -> int:
    """Pre-train methods x seeds under the same settings, evaluate them, and write one table.

    PLAN is a YAML file, or the name of one that comes with mrmfast. The same command resumes where it stopped.
    """
    from mrmfast.compare import run
    from mrmfast.compare.plan import read_plan

    comparison, folder = read_plan(configs.find(plan), list(overrides), configs.find), Path(out)
    if only_list:
        for missing in run.missing_cells(comparison, folder):
            print(shlex.join(["mrmfast", "compare", plan, "--out", out, "--cell", missing.name, *overrides]))
    elif only_budget:
        run.print_budget(comparison)
    elif only_report:
        print(f"mrmfast: {run.report(comparison, folder)}", file=sys.stderr)
    else:
        return run.run(comparison, folder, name, gpus)
    return 0
