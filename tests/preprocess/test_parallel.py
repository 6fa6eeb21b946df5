"""The parallel runner: threads, processes and a cluster give the same results; crashes are contained and told."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mrmfast.errors import UserError
from mrmfast.formats.manifest import SplitRule
from preprocess.images.job import ImageJob
from preprocess.images.run import run_job
from preprocess.images.sources import SourceFile
from preprocess.parallel import run_parts
from tests.helpers import parts
from tests.helpers.common import ROOT

NUMBERS = list(range(8))


def run(part, folder, workers=2, processes=True, scheduler=None):
    arguments = argparse.Namespace(workers=workers, scheduler=scheduler)
    return run_parts(
        part,
        folder,
        NUMBERS,
        [1] * len(NUMBERS),
        arguments,
        "test",
        "part",
        processes=processes,
        describe=lambda number: f"number {number}",
    )


def runs(folder):
    return {
        number: (folder / f"ran-{number}").stat().st_size for number in NUMBERS if (folder / f"ran-{number}").exists()
    }


@pytest.fixture(scope="module")
def cluster():
    """A Dask cluster of two workers on loopback; yields its address."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as opened:
        yield opened.scheduler_address


@pytest.mark.parametrize(("workers", "processes"), [(1, True), (2, True), (20, True), (2, False)])
def test_results_come_in_order_and_each_part_runs_once(tmp_path, workers, processes):
    assert run(parts.append_number, tmp_path, workers, processes) == [number**2 for number in NUMBERS]
    assert runs(tmp_path) == dict.fromkeys(NUMBERS, 1)


@pytest.mark.slow
def test_a_cluster_gives_the_same_results(tmp_path, cluster):
    assert run(parts.append_number, tmp_path, scheduler=cluster) == [number**2 for number in NUMBERS]
    assert runs(tmp_path) == dict.fromkeys(NUMBERS, 1)


def test_the_part_of_a_killed_worker_runs_again(tmp_path):
    assert run(parts.kill_once, tmp_path) == [number**2 for number in NUMBERS]
    counts = runs(tmp_path)
    assert counts.keys() == set(NUMBERS)
    assert counts[3] == 1
    # The part beside the killed one may run twice, since the pool goes down with the worker; finished parts do not.
    assert sum(counts.values()) <= len(NUMBERS) + 1


def test_a_part_that_kills_each_worker_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError) as caught:
        run(parts.kill_always, tmp_path)
    assert str(caught.value).startswith("test: number 3 killed its worker process each time; ")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_part_that_kills_each_worker_of_a_cluster_is_told_in_one_line(tmp_path):
    import dask
    from distributed import LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as opened,
        pytest.raises(UserError, match=r"test: number \d killed its worker process each time"),
    ):
        run(parts.kill_always, tmp_path, scheduler=opened.scheduler_address)


@pytest.mark.parametrize("processes", [True, False])
def test_an_error_of_a_part_arrives_as_it_was_raised(tmp_path, processes):
    with pytest.raises(UserError) as caught:
        run(parts.user_error, tmp_path, processes=processes)
    assert type(caught.value) is UserError
    assert str(caught.value) == "three.txt: is damaged; copy it again"
    with pytest.raises(OSError, match="No space left") as full:
        run(parts.disk_full, tmp_path, processes=processes)
    assert full.value.errno == errno.ENOSPC


def test_no_scheduler_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="--scheduler nonsense://x: no Dask scheduler answers there"):
        run(parts.append_number, tmp_path, scheduler="nonsense://x")


# --------------------------------------------------------------------------------------------------------------- images


def image_job(folder, texts):
    """A job over small text files, which tests.helpers.parts.one_image turns into images."""
    (folder / "src").mkdir()
    for number, text in enumerate(texts):
        (folder / "src" / f"{number}.txt").write_text(text)
    return ImageJob(
        command="test",
        root=folder / "src",
        dataset=folder / "ds",
        sources=[SourceFile(number, f"{number}.txt", f"p{number}", {}) for number in range(len(texts))],
        process=parts.one_image,
        arguments={},
        image_size=16,
        samples_per_shard=4,
        splits=SplitRule(),
        schema={},
        files_per_part=3,
    )


def tars(dataset):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dataset.glob("images/*.tar")}


def test_a_file_that_crashes_the_decoder_is_named(tmp_path):
    job = image_job(tmp_path, ["1", "2", "3", "4", "crash", "6", "7"])
    arguments = argparse.Namespace(workers=2, scheduler=None)
    with pytest.raises(UserError, match="killed its worker process each time") as caught:
        run_job(job, arguments, accept_unreadable=False)
    note = Path(str(caught.value).split("the file named in ")[1].split(" killed")[0])
    assert note.read_text() == "4.txt\n"
    assert note.stat().st_mode & 0o077 == 0  # names hold participants' ids
    # Moved away or replaced, the job resumes.
    (job.root / "4.txt").write_text("5")
    report, status = run_job(job, arguments, accept_unreadable=False)
    assert status == 0
    assert report["counts"]["written"] == 7
    assert not list(job.dataset.rglob("*.current"))


@pytest.mark.slow
def test_images_on_a_cluster_have_the_same_bytes(tmp_path, cluster, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [str(number) for number in range(10)]
    for name, scheduler in (("here", None), ("there", cluster)):
        (tmp_path / name).mkdir()
        # A relative path: the cluster's workers have working directories of their own.
        job = image_job(Path(name), texts)
        run_job(job, argparse.Namespace(workers=1, scheduler=scheduler), accept_unreadable=False)
    assert tars(tmp_path / "here" / "ds") == tars(tmp_path / "there" / "ds") != {}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "interrupt"])
def test_a_killed_worker_and_an_interrupt(tmp_path, victim):
    """A killed worker costs nothing but time; Ctrl-C ends with one line and status 130, and a rerun resumes."""
    cv2, np = pytest.importorskip("cv2"), pytest.importorskip("numpy")
    rng = np.random.default_rng(0)
    (tmp_path / "src").mkdir()
    for number in range(130):
        stained = rng.integers(0, 40, (500, 500, 3), dtype=np.uint8) + np.array([160, 90, 190], np.uint8)
        cv2.imwrite(str(tmp_path / "src" / f"TCGA-06-{number:04d}_1.png"), stained)

    def command(out):
        source = str(tmp_path / "src")
        arguments = ["--size", "32", "--workers", "2"]
        return [sys.executable, "-m", "preprocess", "pathology", source, "--out", str(out), *arguments]

    out = tmp_path / "ds"
    # Whoever starts the tests in the background of a shell has told all of them to ignore SIGINT.
    code = "import signal, sys, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"sys.argv = {command(out)[2:]!r}; runpy.run_module('preprocess', run_name='__main__')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("images/.parts/*.current"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    children = psutil.Process(process.pid).children()
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert workers
    if victim == "worker":
        workers[0].kill()
        _, message = process.communicate(timeout=120)
        assert process.returncode == 0, message
    else:
        os.kill(process.pid, signal.SIGINT)
        _, message = process.communicate(timeout=120)
        assert process.returncode == 130, message
        assert message.splitlines()[-1] == "mrmfast: interrupted; run the same command again to continue"
        assert subprocess.run(command(out), cwd=ROOT, capture_output=True).returncode == 0
    assert subprocess.run(command(tmp_path / "again"), cwd=ROOT, capture_output=True).returncode == 0
    assert tars(out) == tars(tmp_path / "again") != {}
    shutil.rmtree(tmp_path / "src")
