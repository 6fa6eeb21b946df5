"""The benchmark of loaders on an object store: wrong results stop it, a loader that cannot run is skipped by name."""

import json
import subprocess
import zlib
from types import SimpleNamespace

import pytest

from benchmarks.harness import Bench, GateError
from benchmarks.object_store import peers
from benchmarks.object_store.compare import compare
from benchmarks.object_store.whole_loader import jpegs

COUNT = 64
SERVER = SimpleNamespace(url="http://127.0.0.1:9", requests=lambda: 0)


@pytest.fixture
def answer(monkeypatch):
    """Results of the processes, by name; a string is the error output of a process that fails."""
    right = {
        "seconds": {"fetch": [1.0, 2.0], "whole": [4.0, 4.0]},
        "sums": [sorted(map(zlib.crc32, jpegs(COUNT)))] * 2,
        "images": [COUNT] * 2,
        "kinds": [peers.KIND] * 2,
    }
    answers = {name: dict(right) for name in peers.LOADERS}

    def run(command, **_):
        result = answers[command[command.index("benchmarks.object_store.peers") + 1]]
        if isinstance(result, str):
            return subprocess.CompletedProcess(command, 1, "", result)
        return subprocess.CompletedProcess(command, 0, f"output of a loader\n{json.dumps(result)}\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    return answers


def test_loaders_are_compared_and_one_that_fails_is_named(answer, tmp_path):
    answer["DALI"] = "Traceback\nModuleNotFoundError: No module named 'nvidia'\nresource_tracker: 1 leaked"
    answer["LitData"]["seconds"] = {"fetch": [3.0, 3.0], "whole": [8.0, 8.0]}
    bench = Bench("store")
    compare(bench, SERVER, tmp_path, "python", 2, COUNT)
    assert bench.skipped == {"DALI": "ModuleNotFoundError: No module named 'nvidia'"}
    figures = {figure["name"]: figure["value"] for figure in bench.figures}
    assert figures["mrmfast / LitData, fetch"] == 2
    assert figures["LitData, whole, cold"] == COUNT / 8


@pytest.mark.parametrize(
    ("wrong", "gate"),
    [
        ({"images": [COUNT, COUNT - 1]}, "decoded"),
        ({"kinds": [[3, 224, 224, "uint8"]] * 2}, "float32"),
        (None, "runs"),
    ],
)
def test_wrong_results_stop(answer, tmp_path, wrong, gate):
    answer["mrmfast"] = answer["mrmfast"] | wrong if wrong else "UserError: no room"
    with pytest.raises(GateError, match=f"mrmfast: .*{gate}"):
        compare(Bench("store"), SERVER, tmp_path, "python", 2, COUNT)
