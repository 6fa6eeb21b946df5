"""The GPU check without a GPU: its table, its comparison with the last one, budgets of sections, and the page."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("triton")

import benchmarks.gpu.__main__ as gpu
from benchmarks.gpu import goals as gpu_goals
from benchmarks.gpu import page as gpu_page
from benchmarks.gpu import table as gpu_table
from benchmarks.harness import Bench
from tests.helpers.common import ROOT


def table(**figures):
    bench = Bench("on one NVIDIA H200")
    bench.gate("right", True)
    for name, value in figures.items():
        bench.figure(name, value, "ms")
    return gpu_table.document(bench, "NVIDIA H200")


def test_the_page_is_that_of_the_committed_tables():
    found = gpu_page.tables()
    assert found, "no table is committed"
    assert gpu_page.PAGE.read_text() == gpu_page.page(found), "run: python -m benchmarks.gpu.page"
    for name, one in found.items():
        assert (gpu_page.RESULTS / name).with_suffix(".md").read_text() == gpu_table.markdown(one), name


def test_the_page_names_what_a_table_lacks():
    text = gpu_page.page({"gpu-nvidia-h200.json": table(step=1.0)})
    assert "- the compiled training step" in text
    assert "Nothing has been measured on any card but: NVIDIA H200." in text


def test_what_differs_by_more_than_a_tenth_is_named():
    before, now = table(same=100, slower=100, gone=1, ranged=100), table(same=109, slower=112, new=1, ranged=125)
    next(figure for figure in before["figures"] if figure["name"] == "ranged")["to"] = 120
    assert gpu_table.differences(before, now) == [
        "slower: 100 before, now 112 ms, 1.12 times",
        "new: not measured before",
        "gone: no longer measured",
    ]


def test_the_last_table_is_of_the_same_card(tmp_path):
    assert gpu_table.last_table(tmp_path, "NVIDIA H200") is None
    for name, card in (("gpu-a.json", "NVIDIA H200"), ("gpu-b.json", "NVIDIA A100")):
        (tmp_path / name).write_text(json.dumps({**table(step=1.0), "card": card}))
    assert gpu_table.last_table(tmp_path, "NVIDIA H200")[0] == "gpu-a.json"
    assert gpu_table.write(tmp_path, table(step=2.0)).name == "gpu-nvidia-h200.json"
    assert gpu_table.last_table(tmp_path, "NVIDIA H200")[0] == "gpu-nvidia-h200.json"
    assert "| step | 2 | ms |" in (tmp_path / "gpu-nvidia-h200.md").read_text()


def test_goals_need_every_figure_they_are_made_of():
    bench = Bench("a")
    gpu_goals.goals(bench)
    assert [bar["value"] for bar in bench.bars] == [None] * 4
    assert not any(bar["holds"] for bar in bench.bars)
    bench = Bench("b")
    figures = {gpu_goals.JOB: 160, f"{gpu_goals.STEP}: ours": 155, f"{gpu_goals.JOB}: training": 1600}
    figures |= {f"{gpu_goals.JOB}: waiting for data": 0.01, gpu_goals.ARITHMETIC: 272, gpu_goals.PRODUCT: 790}
    for name, value in figures.items():
        bench.figure(name, value, "")
    gpu_goals.goals(bench)
    assert all(bar["holds"] for bar in bench.bars)
    assert bench.bars[1]["value"] == pytest.approx(272e9 * 1600 / 790e12)


def test_a_section_that_takes_too_long_is_killed_with_all_it_started_and_the_next_runs(tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    hang = "import subprocess; child = subprocess.Popen(['sleep', '60']); "
    hang += f"open({str(pid)!r}, 'w').write(str(child.pid)); child.wait()"
    assert gpu._run_section([sys.executable, "-c", hang], 3) == "not complete in 3 s"
    state = Path(f"/proc/{pid.read_text()}/stat")
    deadline = time.monotonic() + 10  # a killed process may run for a moment longer
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert gpu._run_section([sys.executable, "-c", "raise SystemExit(3)"], 60) == "exit status 3"
    reasons = iter(["not complete in 15 s", None])
    monkeypatch.setattr(gpu, "_run_section", lambda *_, **__: next(reasons))
    bench = Bench("a")
    gpu.measure_apart(bench, "cpu", ["limits", "tests"], 1)
    assert bench.skipped == {"limits": "not complete in 15 s", "tests": "ended without a result"}
    assert gpu.verdict(bench, 0) == 1


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize(
    ("content", "passes"),
    [
        ("def test_no_queries(): pass", True),
        ("def test_no_queries(): assert 0", False),
        ("", False),
        ("import pytest\n@pytest.mark.skip\ndef test_no_queries(): pass", False),
    ],
)
def test_a_section_of_no_tests_has_not_passed(tmp_path, monkeypatch, device, content, passes):
    (tmp_path / "test_kernels.py").write_text(content)
    monkeypatch.setattr(gpu, "TESTS", ("-c", "/dev/null", str(tmp_path)))
    bench = Bench("a")
    gpu.measure(bench, device, gpu.TINY, {"tests": gpu.SECTIONS["tests"]})
    assert [gate["holds"] for gate in bench.gates] == [passes]
    assert [figure["value"] for figure in bench.figures] == [int(passes)]
    assert (gpu.verdict(bench, 0) == 0) == passes


def test_budgets_fit_six_minutes():
    assert sum(section.seconds for section in gpu.SECTIONS.values()) < 360


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_executes_every_section_on_the_cpu(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", "scripts/gpu_check.sh", "--dry-run", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "gpu-no-card-(dry-run).json").read_text())
    assert found["skipped"] == {}, done.stdout[-3000:] + done.stderr[-3000:]
    assert found["gate"] == "passed"
    values = {figure["name"]: figure["value"] for figure in found["figures"]}
    for name in ("main job, micro-batch 4", "step, micro-batch 4: compiled", "step, micro-batch 4: MAE"):
        assert name in values
    assert values["tests of the kernels that passed on cpu (a few, interpreted)"] > 0
    assert {"main job, micro-batch 2: waiting for data", "loader: DALI decode only, hardware share 0.65"} <= set(values)
