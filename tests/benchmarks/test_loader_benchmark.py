"""The loader's benchmark: its gate can fail, peers are held to the same work, the profile says what bounds."""

import json

import cv2
import numpy as np
import pytest

import benchmarks.loader.__main__ as loader
from benchmarks.harness import Bench, GateError
from benchmarks.loader import dataset, gate, profile
from benchmarks.peers.process import Process
from benchmarks.peers.task import Task, parse
from mrmfast.data import loader as loaders
from mrmfast.data.images.augment import draw_matrices
from mrmfast.meters import STAGES, Span

TILES, SIZE = 104, 48


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    generator = np.random.default_rng(0)
    pictures = [
        cv2.resize(generator.integers(0, 255, (9, 9, 3), dtype=np.uint8), (96, 96), interpolation=cv2.INTER_CUBIC)
        for _ in range(3)
    ]
    dataset.write(folder / "tiles", pictures, TILES, SIZE, generator)
    return Task(folder / "tiles", folder / "work", TILES, SIZE, SIZE, genetics=True)


def test_a_task_travels_by_command_line(task):
    assert parse(task.arguments()) == task


def test_the_gate_passes_and_fails_where_pictures_differ(task, monkeypatch):
    bench = Bench("loader")
    gate.check(bench, task)
    assert len(bench.gates) == 4

    def late(piece, view, **settings):
        return draw_matrices(piece, view, **settings) + np.float32([[0, 0, 3], [0, 0, 0]])

    monkeypatch.setattr(loaders, "draw_matrices", late)
    with pytest.raises(GateError, match="pictures are Pillow's"):
        gate.check(bench, task)


def test_a_loader_in_its_own_process_is_measured_and_held_to_the_task(task):
    process = Process("ours:Ours", task)
    try:
        assert process.epoch()["pictures"] == TILES
        assert process.memory > 50e6
        assert process.processes == 1
        bench = Bench("loader")
        gate.check_peer(bench, "ours", process, task, process.first["mean"])
        with pytest.raises(GateError, match="gives 104 pictures"):
            gate.check_peer(bench, "ours", process, task, process.first["mean"] + 0.5)
    finally:
        process.close()


def test_a_loader_that_cannot_start_says_why(task):
    with pytest.raises(RuntimeError, match="No module named"):
        Process("nobody:Nobody", task)


def test_ratios_are_medians_of_turns():
    speeds = {"a": [10.0, 30.0, 20.0], "b": [5.0, 10.0, 20.0]}
    assert loader._ratio(speeds, "a", "b") == 2
    assert loader._ratio(speeds, "a", "absent") is None


class _Fake:
    """Twelve times as fast as peers where it is ours, which need a second; FFCV can't be started."""

    def __init__(self, name, task, interpreter):
        if name.startswith("ffcv"):
            raise RuntimeError("No module named ffcv")
        self.memory, self.threads, self.processes = 10**8, 3, 1
        self._seconds = 1 / 12 if name == "ours:Ours" else 1.0
        self.first = {"pictures": task.tiles, "shape": [3, task.size, task.size], "dtype": task.pixels, "mean": 0.5}

    def epoch(self):
        return {"pictures": TILES, "seconds": self._seconds}

    def close(self):
        pass


def test_bars_compare_ours_with_the_fastest_and_what_is_missing_does_not_hold(task, monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "Process", _Fake)
    monkeypatch.setattr(dataset, "make", lambda *given: task.dataset)
    monkeypatch.setattr(dataset, "find_photographs", lambda given: None)
    files = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "out" / "a.md")]
    arguments = [
        "loader",
        "--sizes",
        str(SIZE),
        "--tiles",
        str(TILES),
        "--ffcv-python",
        "none",
        "--epochs",
        "2",
        *files,
    ]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(loader, "SIZE", SIZE)
    monkeypatch.setattr(loader, "PAUSE", 0)
    assert loader.main() == 1
    found = json.loads((tmp_path / "a.json").read_text())
    bars = {bar["name"].split(": ", 1)[1]: bar for bar in found["bars"]}
    assert bars["ours / PyTorch DataLoader + PIL"]["value"] == pytest.approx(12)
    assert bars["ours with genetics / without"]["holds"]
    assert bars["ours / FFCV, both not rotated, float32"]["value"] is None
    assert len(found["skipped"]) == 2
    table = (tmp_path / "out" / "a.md").read_text()
    assert "| ours | 1,248 | 1.00 | 100 | 3 | 1 |" in table
    assert "not measured" in table


def test_profile_writes_a_table_a_trace_and_a_plot(task, tmp_path):
    text = profile.profile(task, tmp_path / "out")
    assert f"{profile.EPOCHS * TILES} images" in text
    assert "bottleneck" in text or "No stage" in text
    events = json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]
    assert {event["name"] for event in events if event["ph"] == "X"} >= {"read", "decode", "augment", "join", "wait"}
    assert cv2.imread(str(tmp_path / "out" / "throughput.png")).std() > 5
    assert (tmp_path / "out" / "profile.md").read_text() == text


def test_a_span_becomes_microseconds_in_its_threads_row():
    spans = [Span("decode", 11, 0.5, 0.25, 8), Span("read", 22, 0.0, 0.1, 64), Span("augment", 11, 0.75, 0.1, 8)]
    events = profile.chrome_trace(spans)["traceEvents"]
    names, events = events[:2], events[2:]
    assert [event["args"]["name"] for event in names] == ["augment, decode", "read"]
    assert [event["tid"] for event in events] == [0, 1, 0]
    assert (events[0]["ts"], events[0]["dur"]) == (5e5, 2.5e5)


@pytest.mark.parametrize(
    ("busy", "sentence"),
    [
        ({"wait": 0.1}, "not the bottleneck"),
        ({"wait": 9, "decode": 14, "augment": 5}, "bottleneck is decode"),
        ({"wait": 9, "decode": 7, "augment": 12}, "bottleneck is augment"),
        ({"wait": 9, "decode": 3, "fetch": 9.5}, "bottleneck is fetch"),
        ({"wait": 9, "decode": 3, "fetch": 1}, "No stage is busy"),
    ],
)
def test_the_bottleneck_in_plain_words(busy, sentence):
    seconds = {name: float(busy.get(name, 0)) for name in STAGES}
    assert sentence in profile.bottleneck(seconds, 10.0, 2)
