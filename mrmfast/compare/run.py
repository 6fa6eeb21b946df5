"""Run the cells of a plan that are missing, and write the report."""

from __future__ import annotations

import sys
from pathlib import Path

from mrmfast.command import USER_ERROR
from mrmfast.compare.budget import Cost, cost_of, seconds_left, table
from mrmfast.compare.cell import CellResult, read_result, run_cell
from mrmfast.compare.plan import Cell, Plan
from mrmfast.errors import UserError


def results(plan: Plan, out: Path) -> list[CellResult]:
    """Return the results of the cells that are done."""
    read = (read_result(out, plan, cell) for cell in plan.cells())
    return [result for result in read if result is not None]


def missing_cells(plan: Plan, out: Path) -> list[Cell]:
    """Return the cells that are not done."""
    return [cell for cell in plan.cells() if read_result(out, plan, cell) is None]


def print_budget(plan: Plan) -> list[Cost]:
    """Print what the comparison costs; return it."""
    costs = [cost_of(plan, method) for method in plan.methods]
    total = sum(cost.flops for cost in costs) * len(plan.seeds)
    print(table(costs, len(plan.seeds)), file=sys.stderr)
    print(f"{len(plan.cells())} cells, {total / 1e15:.4g} PFLOP of pre-training in all", file=sys.stderr)
    return costs


def run(plan: Plan, out: Path, name: str | None, gpus: int | None) -> int:
    """Run one cell or all that are missing; return the exit status.

    An error of one cell does not stop the others; it is told again at the end.
    """
    cells = missing_cells(plan, out)
    if name is not None:
        chosen = plan.cell(name)
        cells = [cell for cell in cells if cell == chosen]
    evaluations = plan.build_evaluations("plan")
    costs = print_budget(plan)
    errors = []
    for number, cell in enumerate(cells):
        left = seconds_left(costs, results(plan, out), cells[number:])
        time = "" if left is None else f", about {left / 60:.0f} minutes of pre-training left"
        print(f"\nmrmfast: cell {number + 1} of {len(cells)}: {cell.name}{time}", file=sys.stderr)
        try:
            run_cell(plan, evaluations, cell, out, gpus)
        except UserError as error:
            errors.append(f"{cell.name}: {error}")
            print(f"mrmfast: error: {errors[-1]}", file=sys.stderr)
    if results(plan, out) and name is None:
        print(f"mrmfast: {report(plan, out, costs)}", file=sys.stderr)
    if errors:
        print(
            f"mrmfast: {len(errors)} of {len(cells)} cells failed; the same command tries them again", file=sys.stderr
        )
    return USER_ERROR if errors else 0


def report(plan: Plan, out: Path, costs: list[Cost] | None = None) -> Path:
    """Write the report of the cells that are done; return the page.

    Raises
    ------
    UserError
        No cell is done.
    """
    from mrmfast.compare.report import write_report

    done = results(plan, out)
    if not done:
        raise UserError(f"--out {out}: no cell is done yet; run the command without --report")
    return write_report(plan, done, costs or [cost_of(plan, method) for method in plan.methods], out)
