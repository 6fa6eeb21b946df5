"""Files appear complete or not at all, and what killed writers leave is removed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mrmfast.atomic import commit_file, partial_path, sweep_partials, write_aside

KILLED = """
import os, signal, sys
from mrmfast.atomic import write_aside
with write_aside(sys.argv[1]) as file:
    file.write("half of a longer text")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_writer(path: Path) -> Path:
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert not path.exists()
    return partial_path(path)


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "folder/x.json"
    with write_aside(path) as file:
        file.write("old")
    with pytest.raises(TypeError), write_aside(path) as file:
        file.write(b"bytes into a text file")
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_what_a_killed_writer_leaves_has_one_name_and_is_replaced(tmp_path):
    path = tmp_path / "x.json"
    assert {killed_writer(path) for _ in range(3)} == {tmp_path / ".x.json.partial"}
    assert (tmp_path / ".x.json.partial").read_text() == "half of a longer text"
    with write_aside(path) as file:
        file.write("short")
    assert path.read_text() == "short", "the rest of the killed writer's text is gone"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_a_sweep_removes_leftovers_and_spares_living_writers(tmp_path):
    killed_writer(tmp_path / "a.json")
    (tmp_path / ".b.json.4711.partial").write_text("of a version that put the process id into the name")
    killed_writer(tmp_path / "other.txt")
    with write_aside(tmp_path / "living.json") as file:
        file.write("complete")
        assert sweep_partials(tmp_path, "*.json*") == 2
    assert sweep_partials(tmp_path / "absent") == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".other.txt.partial", "living.json"]
    assert (tmp_path / "living.json").read_text() == "complete"


def test_writers_of_one_name_take_turns(tmp_path):
    path, texts = tmp_path / "x", [str(number) * 50_000 for number in range(8)]

    def write(text: str) -> None:
        for _ in range(5):
            with write_aside(path) as file:
                for start in range(0, len(text), 10_000):
                    file.write(text[start : start + 10_000])
                    file.flush()

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_file_of_another_library_is_committed(tmp_path):
    partial_path(tmp_path / "x.bed").write_bytes(b"bed")
    commit_file(partial_path(tmp_path / "x.bed"), tmp_path / "x.bed")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.bed"]
