"""The benchmarks' harness: gates stop, unmeasured bars do not hold, memory of children counts."""

import json
import sys

import pytest

from benchmarks.harness import Bench, GateError, median, median_run, python, run, turns


def test_bars_decide_the_status_and_reach_the_file(tmp_path, capsys):
    bench = Bench("a", tmp_path / "a.json")
    bench.gate("right", True)
    bench.figure("speed", 12.5, "rows/s")
    bench.bar("fast", 21.0, ">=", 20)
    bench.bar("small", 6212, "<=", 6500)
    assert bench.finish() == 0
    bench.bar("peer", None, ">=", 1)
    bench.skip("peer", "not installed")
    assert bench.finish() == 1
    found = json.loads((tmp_path / "a.json").read_text())
    assert [bar["holds"] for bar in found["bars"]] == [True, True, False]
    assert found["bars"][0] == {"name": "fast", "value": 21.0, "op": ">=", "bound": 20, "holds": True}
    assert found["gate"] == "passed"
    assert found["gates"] == [{"name": "right", "holds": True}]
    assert found["skipped"] == {"peer": "not installed"}
    assert found["env"]["cores"] >= 1
    assert "does NOT hold" in capsys.readouterr().out


def test_a_failed_gate_stops_and_reaches_the_file(tmp_path):
    bench = Bench("a", tmp_path / "a.json")
    bench.gate("right", True)
    with pytest.raises(GateError, match="wrong"):
        bench.gate("wrong", False)
    assert json.loads((tmp_path / "a.json").read_text())["gate"] == "failed"


def test_a_benchmark_that_checked_nothing_has_not_passed(tmp_path):
    Bench("a", tmp_path / "a.json").finish()
    assert json.loads((tmp_path / "a.json").read_text())["gate"] == "failed"


def test_commands_are_measured_with_their_children():
    hold = "import time; held = bytearray(150_000_000); time.sleep(0.5)"
    spawn = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}], check=True)"
    seconds, peak = run(python("-c", spawn))
    assert seconds > 0.5
    assert 150e6 < peak < 400e6
    prepared = []
    seconds, _ = median_run([sys.executable, "-c", ""], 3, lambda: prepared.append(1))
    assert len(prepared) == 3
    assert seconds < 5


def test_a_failing_command_shows_its_output():
    with pytest.raises(RuntimeError, match="no such thing"):
        run(python("-c", "import sys; sys.exit('no such thing')"))


def test_a_command_may_say_more_than_a_pipe_holds():
    seconds, _ = run(python("-c", "print('x' * 1_000_000)"))
    assert seconds < 20


def test_the_median_excludes_the_first_call():
    calls = []
    assert median(lambda: calls.append(1), 5) >= 0
    assert len(calls) == 6


def test_turns_rotate_and_the_first_is_not_counted(monkeypatch):
    clock, made = [0.0], []
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])

    def call(name, seconds):
        def take():
            clock[0] += 100 if len(made) < 4 else seconds  # the first round is slow
            made.append(name)

        return take

    found = turns.in_turns({"a": call("a", 1), "b": call("b", 3)}, 3, before=lambda: made.append("-"))
    assert found == {"a": 1, "b": 3}
    assert "".join(made) == "-a-b-b-a-a-b-b-a"
