"""``mrmfast compare``: plans, cells that resume, tables, and one comparison from end to end."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import yaml
from scipy import stats

from mrmfast import cli
from mrmfast.cli import configs
from mrmfast.compare import cell as cells
from mrmfast.compare import run
from mrmfast.compare.budget import Cost
from mrmfast.compare.cell import CellResult, read_result, result_path
from mrmfast.compare.plan import Cell, read_plan
from mrmfast.compare.report import write_report
from mrmfast.compare.table import rows
from mrmfast.errors import UserError
from tests.helpers.common import ROOT, TINY, read_jsonl, train, write_dataset

TRAITS = {"name": "linear_probe", "labels": {"kind": "values", "path": "t.csv", "by": "participant", "columns": ["x"]}}
PLAN = {
    "config": "demo",
    "overrides": ["batch_size=8", "steps=3", *TINY[:5]],
    "methods": {
        "untrained": None,
        "mrm": TINY[5:],
        "mae": ["objective=mae", "objective.decoder={width: 32, depth: 1, heads: 2}"],
    },
    "seeds": [0, 1],
    "evaluations": {"traits": TRAITS},
}


def write_plan(folder, **changes):
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
    return str(path)


def plan_of(folder, **changes):
    return read_plan(write_plan(folder, **changes), [], configs.find)


def result(plan, method, seed, value):
    scores = {"metric": "R2", "values": {"mean": value, "x": value}, "counts": {"training images": 9}}
    digest = plan.digest(Cell(method, seed))
    return CellResult(method, seed, digest, 6.0, {"loss": 1.0}, {"traits": scores})


def store(out, plan, done):
    path = result_path(out, Cell(done.method, done.seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(done)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, "methods"),
        ({"methods": {"a-b": []}}, "not a name"),
        ({"methods": {"../x": []}}, "not a name"),
        ({"methods": {"mae": ["objective=mea"]}}, "did you mean mae"),
        ({"methods": {"mae": ["objective.nothing=1"]}}, "unknown key"),
        ({"seeds": [1, 1]}, "twice"),
        ({"seeds": [-1]}, "at least 0"),
        ({"reference": "moco"}, "no such method"),
        ({"config": "demoo"}, "did you mean demo"),
        ({"evaluations": {"t": {}}}, "evaluations.t.name is missing"),
        ({"evaluations": {"t": {"name": "linear_prob"}}}, "did you mean linear_probe"),
        ({"evaluations": {"t": {"name": "linear_probe"}}}, "labels.kind"),
        ({"evaluations": {"t": {**TRAITS, "pol": "mean"}}}, "did you mean evaluations.t.pool"),
        ({"nothing": 1}, "unknown key"),
    ],
)
def test_a_wrong_plan_is_one_line_before_anything_runs(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        plan_of(tmp_path, **changes)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs" / "compare").glob("*.yaml")))
def test_every_plan_that_ships_is_right(name):
    plan = read_plan(configs.find(f"compare/{name}"), [], configs.find)
    assert plan.compared_with in plan.methods


def test_table_3_has_the_seven_rows_of_the_paper():
    plan = read_plan(configs.find("compare/table3"), [], configs.find)
    masked = {}
    for method in plan.methods:
        objective = plan.train_config(Cell(method, 0)).objective
        matched = objective.match.weight > 0
        masked[method] = (
            objective.mask.self_relations,
            objective.mask.cross_relations,
            matched and objective.match.self_relations,
            matched and objective.match.cross_relations,
        )
    assert list(masked.values()) == [
        (False, False, False, False),
        (True, False, False, False),
        (False, True, False, False),
        (True, True, False, False),
        (True, True, True, False),
        (True, True, False, True),
        (True, True, True, True),
    ]


def test_the_table_equals_formulas_written_out():
    a, b = np.array([0.50, 0.53, 0.49]), np.array([0.61, 0.60, 0.66])
    table = {row.method: row for row in rows({"a": dict(enumerate(a)), "b": dict(enumerate(b))}, "a")}
    half = stats.t.ppf(0.975, 2) * b.std(ddof=1) / np.sqrt(3)
    assert np.allclose(table["b"].interval, (b.mean() - half, b.mean() + half), atol=1e-12)
    gain = b - a
    half = stats.t.ppf(0.975, 2) * gain.std(ddof=1) / np.sqrt(3)
    assert np.allclose(table["b"].difference_interval, (gain.mean() - half, gain.mean() + half), atol=1e-12)
    t = gain.mean() / (gain.std(ddof=1) / np.sqrt(3))
    assert table["b"].p == pytest.approx(2 * stats.t.sf(abs(t), 2), abs=1e-12) == table["b"].p_adjusted
    assert table["a"].difference is table["a"].p is None


def test_differences_are_paired_by_seed_not_by_place():
    table = rows({"a": {0: 1.0, 1: 5.0}, "b": {1: 5.5, 0: 1.4}}, "a")
    assert table[1].difference == pytest.approx(0.45)
    alone = rows({"a": {0: 1.0}, "b": {1: 5.5}}, "a")[1]
    assert alone.difference is alone.interval is None  # no common seed, one seed


def test_a_cell_that_is_done_is_not_run_again_and_other_settings_are_refused(tmp_path):
    plan = plan_of(tmp_path)
    store(tmp_path, plan, result(plan, "mae", 1, 0.5))
    assert Cell("mae", 1) not in run.missing_cells(plan, tmp_path)
    assert len(run.missing_cells(plan, tmp_path)) == 5
    changed = plan_of(tmp_path, overrides=[*PLAN["overrides"], "optimiser.lr=1e-4"])
    with pytest.raises(UserError, match="other settings"):
        read_result(tmp_path, changed, Cell("mae", 1))
    where = plan_of(tmp_path, overrides=[*PLAN["overrides"], "engine.device=cpu"])
    assert read_result(tmp_path, where, Cell("mae", 1)) is not None  # where it runs does not count
    result_path(tmp_path, Cell("mae", 1)).write_text('{"method"')
    with pytest.raises(UserError, match="damaged"):
        run.missing_cells(plan, tmp_path)


def test_the_list_has_a_command_for_each_missing_cell(tmp_path, capsys):
    plan = plan_of(tmp_path)
    store(tmp_path, plan, result(plan, "mrm", 0, 0.5))
    assert cli.main(["compare", str(tmp_path / "plan.yaml"), "--out", str(tmp_path), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["untrained-0", "mae-0", "untrained-1", "mrm-1", "mae-1"]


def test_the_report_says_what_is_missing_and_names_no_worse_than_they_are(tmp_path):
    plan = plan_of(tmp_path)
    done = [
        result(plan, method, seed, 0.1 * seed + len(method) / 10)
        for method, seed in [("untrained", 0), ("mae", 0), ("mae", 1)]
    ]
    page = write_report(plan, done, [], tmp_path).read_text()
    assert "**3 of 6 cells are not done.**" in page
    assert "| mae       | 2       | 0.350 (" in page and "| untrained | 1       | 0.900 " in page
    with (tmp_path / "comparison.csv").open() as file:
        table = {(row["method"], row["label"]): row for row in csv.DictReader(file)}
    assert float(table["mae", "x"]["difference"]) == pytest.approx(-0.6)
    assert "\\toprule" in (tmp_path / "comparison.tex").read_text()
    assert (tmp_path / "comparison.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_comparison_from_end_to_end_killed_in_the_middle(tmp_path, monkeypatch, capsys):
    """Untrained and MAE: the first command is interrupted at a checkpoint, the same command continues and reports."""
    dataset = write_dataset(tmp_path / "ds", participants=24, test_fraction=0.4, genetics=False)
    labels = tmp_path / "labels.csv"
    labels.write_text("eid,x\n" + "".join(f"{1000000 + 7 * number},{number % 5}\n" for number in range(24)))
    probe = {**TRAITS, "labels": {**TRAITS["labels"], "path": str(labels), "identifier": "eid"}}
    methods = {"untrained": None, "mae": PLAN["methods"]["mae"]}
    shared = [*PLAN["overrides"], "run.checkpoint_every=2", "engine.zero_stage=0"]
    path = write_plan(tmp_path, methods=methods, seeds=[0], overrides=shared, evaluations={"traits": probe})
    command = ["compare", path, "--out", str(tmp_path / "out"), f"data.path={dataset}"]
    calls = []

    def in_a_fork(plan, cell, folder, gpus):
        arguments = cells.train_arguments(plan, cell, folder)[1:]
        arguments[arguments.index("--resume")] = "--resume=auto"
        calls.append(cell.name)
        steps = ["steps=2"] if len(calls) == 1 else []  # as far as the checkpoint
        done = train(*arguments, *steps)
        assert done.returncode == 0, done.stderr
        if steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(cells, "_train", in_a_fork)
    assert cli.main(command) == 130
    out = tmp_path / "out"
    assert [path.stem for path in (out / "cells").iterdir()] == ["untrained-0"]
    assert cli.main(command) == 0
    assert calls == ["mae-0", "mae-0"]
    assert [entry["step"] for entry in read_jsonl(out / "runs" / "mae-0" / "metrics.jsonl")] == [1, 2, 3]
    page = (out / "comparison.md").read_text()
    assert "| untrained | 1 " in page and "| mae       | 1 " in page
    before = (out / "cells" / "mae-0.json").read_text()
    assert cli.main(command) == 0 and (out / "cells" / "mae-0.json").read_text() == before
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_of_one_cell_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    plan = plan_of(tmp_path)

    def fail_once(plan, evaluations, cell, out, gpus):
        if cell.name == "mrm-0":
            raise UserError("training ended with status 2")
        store(out, plan, result(plan, cell.method, cell.seed, 0.5))

    monkeypatch.setattr(run, "run_cell", fail_once)
    monkeypatch.setattr(run, "cost_of", lambda plan, method: Cost(method, 0, 0.0, 0))
    assert run.run(plan, tmp_path, None, None) == 2
    assert [cell.name for cell in run.missing_cells(plan, tmp_path)] == ["mrm-0"]
    assert "1 of 6 cells failed" in capsys.readouterr().err
