"""The loader where something goes wrong, or just ends: no hang, no loss, and nothing left behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
import torch

from benchmarks.loader.flatness import WAYS, growth, watch
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.loader import Loader
from mrmfast.data.reader import ShardReader
from mrmfast.errors import UserError
from mrmfast.storage.config import FetchConfig
from tests.helpers.common import ROOT, write_dataset

BACKENDS = ("cpu", "dali")
pytestmark = pytest.mark.timeout(120)  # a hang is a failure, soon


def config_for(dataset, backend, **settings):
    return DataConfig(path=str(dataset), image_size=32, threads=1, backend=backend, **settings)


def make(config, batch=6, rank=0, world=1):
    cpu = torch.device("cpu")
    return Loader(
        open_dataset(config), config, seed=0, batch=batch, micro_batch=batch, rank=rank, world=world, device=cpu
    )


def shared_memory():
    """Entries of /dev/shm, without semaphores of other tests' processes (scikit-learn's loky)."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.loky-")}


def held():
    """Threads of the loader, handles, /dev/shm entries and child processes that there are now."""
    gc.collect()
    time.sleep(0.05)  # threads that were told to end
    threads = [one.name for one in threading.enumerate() if one.name.startswith("mrmfast-")]
    process = psutil.Process()
    return len(threads), process.num_fds(), len(shared_memory()), len(process.children())


@pytest.fixture
def nothing_left(request):
    """Compare what is held before and after a test's action, which runs once before to warm everything up."""

    def check(action):
        action()
        before = held()
        for _ in range(3):
            action()
        assert all(now <= then for now, then in zip(held(), before, strict=True)), (before, held())

    return check


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_break_leaves_nothing_behind(dataset, backend, nothing_left):
    def action():
        loader = make(config_for(dataset, backend))
        for _ in loader.batches(0):
            break  # and nobody closes the generator
        loader.dataset.source.close()

    nothing_left(action)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exception_of_the_caller_leaves_nothing_behind(dataset, backend, nothing_left):
    def train(loader):
        for number, _ in enumerate(loader.batches(0)):
            1 / (3 - number)

    def action():
        loader = make(config_for(dataset, backend))
        with pytest.raises(ZeroDivisionError):
            train(loader)
        loader.dataset.source.close()

    nothing_left(action)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exception_in_the_background_reaches_the_caller(dataset, backend, nothing_left, monkeypatch):
    read, calls = ShardReader.read, []

    def failing(self, samples):
        calls.append(1)
        if len(calls) % 5 == 0:
            raise OSError(5, "Input/output error")
        return read(self, samples)

    monkeypatch.setattr(ShardReader, "read", failing)

    def action():
        loader = make(config_for(dataset, backend))
        with pytest.raises((OSError, RuntimeError), match="Input/output error"):
            list(loader.batches(0, 240))
        loader.dataset.source.close()

    nothing_left(action)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shard_that_goes_missing_is_named(tmp_path, backend, nothing_left):
    path = write_dataset(tmp_path)
    (path / "images/shard-000002.tar").unlink()

    def action():
        loader = make(config_for(path, backend))
        with pytest.raises(UserError, match=r"shard-000002.tar: shard is missing; copy the dataset again"):
            list(loader.batches(0, 24))
        loader.dataset.source.close()

    nothing_left(action)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_ranks_than_samples_or_shards_end_together(tmp_path, backend):
    """Uneven ends are where others hang: every rank must see the same number of steps, however few samples it gets."""
    path = write_dataset(tmp_path, participants=5, per_shard=9)  # 10 images in 2 shards
    config = config_for(path, backend, shuffle_window=1)
    shares = [[batch.keys for batch in make(config, 4, rank, 4).batches(0, 10)] for rank in range(4)]
    assert sorted(key for share in shares for keys in share for key in keys) == [f"{n:09d}" for n in range(10)]


@pytest.mark.parametrize(("backend", "how"), [("cpu", "INT"), ("dali", "INT"), ("cpu", "KILL"), ("dali", "KILL")])
def test_a_signal_ends_the_process_and_all_that_it_holds(dataset, backend, how):
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, "tests")
from tests.data.test_loader_robust import config_for, make
for number, batch in enumerate(make(config_for({str(dataset)!r}, {backend!r})).batches(0)):
    if number == 3:
        print("going", flush=True)
"""
    shared = shared_memory()
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "going\n", process.stderr.read()
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(getattr(signal, f"SIG{how}"))
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == -getattr(signal, f"SIG{how}")
    if how == "INT":
        assert said.rstrip().endswith("KeyboardInterrupt"), said
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert shared_memory() <= shared


def flat(seen):
    """Assert that nothing grows from epoch to epoch; a leak of one an epoch would make 5 or more between the two ends.

    A pool starts a thread when all it has are busy, and each keeps a connection: on a slow machine that comes late.
    """
    grown, pools = growth(seen), 3
    assert grown["threads"] <= pools and grown["handles"] <= pools, grown
    assert grown["shm files"] <= 0 and grown["processes"] <= 0, grown


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_epochs_hold_no_more_than_the_first(dataset, backend, way):
    """Short; memory, too, over 50 epochs: benchmarks/loader/flatness.py."""
    result = watch(config_for(dataset, backend), 12, way, batch=6)
    assert result["exact"]
    flat(result["held"])


def test_epochs_that_evict_and_fetch_again_are_flat_too(tmp_path, upload):
    # 80 shards of one image, so that there are more than lanes.
    path = write_dataset(tmp_path / "ds", participants=40, per_shard=1)
    room = 76 * max(file.stat().st_size for file in path.rglob("*.tar"))
    config = config_for(upload(path, "robust"), "cpu", shuffle_window=1, cache=str(tmp_path / "cache"))
    config = replace(config, fetch=FetchConfig(requests=2, cache_gb=room / 1e9))
    result = watch(config, 10, "stream", batch=8)
    assert result["exact"] and result["evictions"] >= 10
    flat(result["held"])
