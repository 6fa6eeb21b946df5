"""Fetching: faults, the cache of a node, resumed downloads, credentials, and nothing left behind."""

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import defaultdict
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import psutil
import pytest

from benchmarks.object_store import dataset, fault_proxy
from benchmarks.object_store.fault_proxy import KINDS, FaultProxy
from mrmfast.config import build
from mrmfast.data.dataset import DataConfig, open_dataset
from mrmfast.data.genetics.store import GenomeStore
from mrmfast.errors import ClosedError, UserError
from mrmfast.formats.sample_table import read_sample_table
from mrmfast.meters import Meters
from mrmfast.storage import partial_file, retry, shard_fetch
from mrmfast.storage import source as source_module
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.eviction import FullError
from mrmfast.storage.node_cache import NodeCache
from mrmfast.storage.source import DatasetSource
from tests.helpers.common import ROOT

SHARDS, SAMPLES, SIZE = 5, 10, 3_000
QUICK = FetchConfig(requests=4, stall=0.3, deadline=10)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(retry, "BACKOFF", (0.02, 0.2))


@pytest.fixture(scope="module")
def bucket(s3, tmp_path_factory):
    """Five small shards in a bucket of the S3 server: environment, URL, manifest."""
    environment, upload = s3
    folder = tmp_path_factory.mktemp("fetch") / "ds"
    manifest, _ = dataset.write(folder, SHARDS, SAMPLES, SIZE)
    return environment, upload(folder, "fetch"), manifest


@pytest.fixture
def behind(bucket, monkeypatch, request):
    """Start a proxy before the S3 server, whose faults `choose` names; the environment leads there."""

    def start(choose=lambda path: None, **settings):
        environment = bucket[0]
        host, port = environment["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
        proxy = FaultProxy((host, int(port)), choose, **settings)
        request.addfinalizer(lambda: proxy.__exit__())
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        return proxy

    return start


def once(kind, what=".tar"):
    """The first answer of each such path is broken."""
    seen = defaultdict(int)

    def choose(path):
        seen[path] += 1
        return kind if what in path and seen[path] == 1 else None

    return choose


def always(kind, what=".tar"):
    return lambda path: kind if what in path else None


def whole(path, shard):
    return hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_costs_a_retry_and_no_byte(kind, bucket, behind, tmp_path):
    _, url, manifest = bucket
    left = [kind]
    behind(lambda path: left.pop() if left and path.endswith("shard-000002.tar") else None)
    meters = Meters()
    with DatasetSource(url, str(tmp_path), config=QUICK, meters=meters) as source:
        assert source.manifest() == manifest
        source.prefetch(manifest.shards)
        assert all(whole(source.local(shard), shard) for shard in manifest.shards)
    assert not left
    assert meters.stages["fetch"].items == SHARDS * SAMPLES
    again = "mismatches" if kind == "flip" else "retries"
    assert meters.counts.get(again, 0) >= (kind != "slow")
    if kind in ("wrong length", "chunked"):
        # Not the client's error, but ours: it takes such answers for success.
        assert meters.counts["retries"] == 1


def test_a_fault_in_the_manifest_and_every_chunk_of_genetics(dataset, s3, behind, tmp_path):
    url = s3[1](dataset, "fetch-genetics")
    near = GenomeStore.open(str(dataset), cache=str(tmp_path / "near"))
    for number, kind in enumerate(("flip", "503", "wrong length")):
        proxy = behind(once(kind, "/ds/"))
        meters = Meters()
        with DatasetSource(url, config=QUICK, meters=meters) as source:
            names = sorted(source.manifest().genetics)
            table = read_sample_table(url, source.zarr_store())
            far = GenomeStore.open(url, names, source.zarr_store(), str(tmp_path / f"far{number}"))
        assert table.key.tolist() == read_sample_table(str(dataset)).key.tolist()
        for one, other in zip(near.modalities, far.modalities, strict=True):
            assert np.array_equal(one.rows, other.rows, equal_nan=one.encoding == "float")
        assert meters.counts["retries" if kind == "503" else "mismatches"] > 10
        assert len(proxy.paths) > 20


def test_why_the_tables_did_not_come_is_told(dataset, s3, behind, tmp_path):
    """Neither a refused request nor a closed source is a damaged dataset."""
    url = s3[1](dataset, "fetch-refused")
    behind(always("403", ".zarr"))
    with DatasetSource(url, config=QUICK) as source:
        for read in (
            lambda: read_sample_table(url, source.zarr_store()),
            lambda: GenomeStore.open(url, ["pgs"], source.zarr_store(), str(tmp_path)),
        ):
            with pytest.raises(UserError, match="access denied"):
                read()
    with pytest.raises(ClosedError):
        read_sample_table(url, source.zarr_store())
    with pytest.raises(ClosedError):
        GenomeStore.open(url, ["pgs"], source.zarr_store(), str(tmp_path))


def test_what_stays_wrong_fails_loudly(bucket, behind, tmp_path):
    _, url, manifest = bucket
    impatient = FetchConfig(stall=0.2, deadline=0.3)
    cases = {
        "flip": "shard-000000.tar: SHA-256 differs from the manifest, 3 times; upload the dataset again",
        "wrong length": "shard-000000.tar: has 15000 bytes, the manifest says 30000; upload it again",
        "503": "shard-000000.tar: the object store answers with status 503",
        "stall": "shard-000000.tar: the object store stalls; check the network, or raise data.fetch.stall",
        "restart": "shard-000000.tar: cannot connect to the object store|breaks off its answers",
    }
    for kind, message in cases.items():
        behind(always(kind), away=3 if kind == "restart" else 0.1)
        start = time.monotonic()
        with DatasetSource(url, str(tmp_path), config=impatient) as source, pytest.raises(UserError, match=message):
            source.local(manifest.shards[0])
        assert time.monotonic() - start < 10, kind
    assert not list(tmp_path.glob("*.tar"))


def test_secrets_are_not_told(bucket, behind, tmp_path, monkeypatch, caplog):
    # S3 quotes the key's id and the string to sign in some answers; the traceback must not.
    url = bucket[1]
    answer = b"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>testing</AWSAccessKeyId></Error>"
    monkeypatch.setattr(fault_proxy, "ERROR", answer)
    behind(always("403", ""))
    caplog.set_level("DEBUG")
    with (
        DatasetSource(url, str(tmp_path), config=QUICK) as source,
        pytest.raises(UserError, match="access denied; the credentials lack s3:GetObject") as caught,
    ):
        source.manifest()
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "testing" not in told and "AWSAccessKeyId" not in told


@pytest.fixture
def plain(tmp_path):
    """A web server that knows neither ranges nor listings in the manner of S3; yields its folder and URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("ETag", '"1"')  # which S3 and GCS always send
            super().end_headers()

        def log_message(self, *_):
            pass

        def list_directory(self, path):
            self.send_error(403)

    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_where_it_comes_from(dataset, plain, tmp_path, monkeypatch):
    folder, web = plain
    (folder / "bucket").mkdir()
    (folder / "bucket/ds").symlink_to(dataset)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", web)
    options = {"gs://bucket/ds": {"anon": True, "base_url": web}, "s3://bucket/ds": {"anon": True}}
    for url in (*options, str(dataset), f"file://{dataset}"):
        with DatasetSource(url, str(tmp_path / url[:2]), options.get(url), QUICK) as source:
            manifest = source.manifest()
            assert all(whole(source.local(shard), shard) for shard in manifest.shards)
    # Nothing can be listed there, and a whole dataset opens all the same.
    opened = open_dataset(DataConfig(path=f"{web}/bucket/ds", cache=str(tmp_path / "http")))
    assert opened.store is not None
    assert all(whole(opened.source.local(shard), shard) for shard in opened.manifest.shards)
    opened.source.close()


def test_addresses_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "FIRST", 0.3)
    with pytest.raises(UserError, match=r"foo://x: .*; data.path is a folder, or a URL such as s3://BUCKET/PREFIX"):
        DatasetSource("foo://x", str(tmp_path)).manifest()
    with pytest.raises(UserError, match="cannot connect to the object store; check the network"):
        DatasetSource("http://127.0.0.1:9/ds", str(tmp_path)).manifest()


def test_a_profile_is_found(bucket, behind, tmp_path, monkeypatch):
    behind()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[study]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "study")
    with DatasetSource(bucket[1], config=QUICK) as source:
        assert source.manifest() == bucket[2]
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(UserError, match="check AWS_PROFILE"):
        DatasetSource(bucket[1], config=QUICK).manifest()


@pytest.fixture(scope="module")
def large(s3, tmp_path_factory):
    """One shard of 8 MB and a bit."""
    folder = tmp_path_factory.mktemp("large") / "ds"
    manifest, _ = dataset.write(folder, 1, 81, 104_857)
    return s3[1](folder, "fetch-large"), manifest.shards[0]


def test_a_large_shard_comes_in_ranges(large, behind, tmp_path, monkeypatch):
    url, shard = large
    monkeypatch.setattr(shard_fetch, "REQUEST", 2 << 20)
    meters = Meters()
    behind(once("truncation"))
    with DatasetSource(url, str(tmp_path), config=QUICK, meters=meters) as source:
        assert whole(source.local(shard), shard)
    assert meters.counts["requests"] == 5 + 1  # 8.1 blocks, two a range, one of them twice
    # The range that broke went on where it stopped.
    assert meters.counts["fetched_bytes"] == shard.bytes


def test_a_killed_download_is_taken_up_again(large, behind, tmp_path, monkeypatch):
    url, shard = large
    proxy = behind(once("stall"), stall=60)
    code = f"""
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.source import DatasetSource
from mrmfast.formats.manifest import Shard
DatasetSource({url!r}, {str(tmp_path)!r}, config=FetchConfig(stall=60)).local({shard!r})
"""
    victim = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    begun = tmp_path / f"{shard.sha256}.partial"
    for _ in range(600):
        if begun.exists() and begun.stat().st_size and begun.read_bytes()[shard.bytes :].count(1) >= 3:
            break
        time.sleep(0.05)
    with open(begun, "rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    meters = Meters()
    with DatasetSource(url, str(tmp_path), config=QUICK, meters=meters) as source:
        assert whole(source.local(shard), shard)
    assert meters.counts["resumed_bytes"] >= 3 * partial_file.BLOCK
    assert meters.counts["fetched_bytes"] + meters.counts["resumed_bytes"] == shard.bytes
    assert len(proxy.paths) == 2
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == [f"{shard.sha256}.tar"]


def test_ranks_of_a_node_download_once(bucket, behind, tmp_path):
    _, url, manifest = bucket
    proxy = behind(always("slow"), slow=0.2)
    meters = Meters()
    ranks = [DatasetSource(url, str(tmp_path), config=QUICK, meters=meters) for _ in range(4)]
    for rank in ranks:
        rank.prefetch(manifest.shards)
    for rank in ranks:
        assert all(whole(rank.local(shard), shard) for shard in manifest.shards)
        rank.close()
    assert len(proxy.paths) == SHARDS
    assert meters.counts["cache_hits"] == 3 * SHARDS


def test_the_cache_stays_within_its_limit_and_keeps_what_is_in_use(bucket, behind, tmp_path):
    _, url, manifest = bucket
    a, b, c, d, e = manifest.shards
    behind()
    config = FetchConfig(deadline=0.5, cache_gb=3.5 * a.bytes / 1e9)

    def cached():
        return {shard.path for shard in manifest.shards if (tmp_path / f"{shard.sha256}.tar").exists()}

    meters = Meters()
    with DatasetSource(url, str(tmp_path), config=config, meters=meters) as source:
        for shard in (a, b, c):
            source.local(shard)
        with pytest.raises(UserError, match=r"data.fetch.cache_gb=.* full of shards in use; raise it, or lower"):
            source.local(d)
        assert cached() == {a.path, b.path, c.path}
        source.release(a)
        source.release(b)
        source.local(a)  # used last, though it came first
        source.release(a)
        source.local(d)
        assert cached() == {a.path, c.path, d.path}
        # Another process reads a, and holds it as we would.
        holder = subprocess.Popen(
            ["flock", "-s", tmp_path / f"{a.sha256}.tar", "sh", "-c", "echo; exec sleep 60"], stdout=subprocess.PIPE
        )
        holder.stdout.readline()
        source.release(c)
        source.local(e)
        assert cached() == {a.path, d.path, e.path}
        assert meters.counts["cache_evictions"] == 2
        source.release(d)
        source.release(e)
        holder.kill()
        holder.wait()
    with pytest.raises(UserError, match=r"shard-000000.tar alone has .* GB; raise the limit"):
        DatasetSource(url, str(tmp_path / "small"), config=FetchConfig(cache_gb=1e-6)).local(a)


def test_many_small_shards_in_use_never_exceed_the_limit(tmp_path):
    """The folder is not looked through for each of them, but again once it was full."""
    size, limit = 100, 25_000
    cache = NodeCache(tmp_path, limit, False, threading.Event())
    pins = []

    def fetch():
        name = f"{len(pins):064x}"
        with cache.claim(name, size) as partial:
            partial.write(0, bytes(size))
            pins.append(partial.finish(cache.complete_path(name)))

    for _ in range(240):
        fetch()
    with suppress(FullError):
        for _ in range(20):
            fetch()
    for _ in range(5):
        with pytest.raises(FullError):
            fetch()
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
    pins[0].close()
    fetch()
    for pin in pins:
        pin.close()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("cache_gb", float("inf"), "a finite number"),
        ("cache_gb", float("nan"), "a finite number"),
        ("cache_gb", -1.0, "above 0"),
        ("cache_gb", 1e300, "at most 1e+09"),
        ("requests", 0, "at least 1"),
        ("requests", 2**70, "at most 4096"),
        ("stall", 0.0, "above 0"),
        ("deadline", float("inf"), "a finite number"),
    ],
)
def test_a_value_out_of_range_is_told_by_its_key(key, value, reason):
    with pytest.raises(UserError) as caught:
        build(DataConfig, {"fetch": {key: value}}, "data")
    message = str(caught.value)
    assert message == f"data: fetch.{key}={value}: must be {reason}"
    assert "\n" not in message and "{" not in message


def test_waiting_for_room_ends_when_a_shard_is_released(bucket, behind, tmp_path):
    _, url, manifest = bucket
    a, b = manifest.shards[:2]
    behind()
    with DatasetSource(url, str(tmp_path), config=FetchConfig(cache_gb=1.5 * a.bytes / 1e9)) as source:
        source.local(a)
        source.prefetch([b])
        time.sleep(0.2)
        source.release(a)
        assert whole(source.local(b), b)


def test_what_is_fetched_ahead_never_keeps_out_what_is_waited_for(bucket, behind, tmp_path):
    """Two requests at once and room for two shards: three were asked for ahead, and the fourth is needed first."""
    _, url, manifest = bucket
    behind()
    config = FetchConfig(requests=2, deadline=2, cache_gb=2.5 * manifest.shards[0].bytes / 1e9)
    with DatasetSource(url, str(tmp_path), config=config) as source:
        for _ in range(3):
            source.prefetch(manifest.shards)
            for shard in reversed(manifest.shards):
                assert whole(source.local(shard), shard)
                source.prefetch(manifest.shards)
                source.release(shard)


@pytest.mark.parametrize("damage", ["cut", "flipped and verified", "flipped before this boot"])
def test_damage_in_the_cache_is_mended(damage, bucket, behind, tmp_path):
    _, url, manifest = bucket
    shard = manifest.shards[0]
    proxy = behind()
    with DatasetSource(url, str(tmp_path), config=QUICK) as source:
        path = source.local(shard)
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw[:-1] if damage == "cut" else raw)
    if "boot" in damage:
        os.utime(path, (1e9, 1e9))
    for requests in (2, 2):
        config = FetchConfig(verify="verified" in damage)
        with DatasetSource(url, str(tmp_path), config=config) as source:
            assert whole(source.local(shard), shard)
        assert len(proxy.paths) == requests


def test_no_room_and_no_permission(bucket, behind, tmp_path, monkeypatch):
    _, url, manifest = bucket
    behind()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written; set data.cache to a folder"):
        DatasetSource(url, str(tmp_path / "file")).local(manifest.shards[0])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="no space left for 30000 bytes; free space"):
        DatasetSource(url, str(tmp_path / "full")).local(manifest.shards[0])
    assert not list((tmp_path / "full").glob("*.partial"))


def test_nothing_is_left_behind(bucket, behind, tmp_path):
    _, url, manifest = bucket
    process = psutil.Process()
    before = set(threading.enumerate())  # other tests' loaders may live

    def held(proxy):
        ours = [one for one in process.net_connections("tcp") if one.raddr and one.raddr.port == proxy.port]
        files = [one.path for one in process.open_files() if str(tmp_path) in one.path]
        threads = [one.name for one in set(threading.enumerate()) - before if one.name.startswith("mrmfast-")]
        return ours, files, threads

    for number, choose in enumerate((always(None), always("stall"), always("flip"), always("reset"))):
        proxy = behind(choose)
        source = DatasetSource(url, str(tmp_path / str(number)), config=FetchConfig(requests=3, stall=0.3, deadline=1))
        source.prefetch(manifest.shards)
        if number == 0:
            source.local(manifest.shards[0])
        elif number == 2:
            with pytest.raises(UserError):
                source.local(manifest.shards[0])
        else:
            time.sleep(0.2)
        start = time.monotonic()
        source.close()
        source.close()
        assert time.monotonic() - start < 2
        time.sleep(0.1)  # the client's runtime closes sockets in its own time
        assert held(proxy) == ([], [], []), number


def test_an_interrupt_ends_a_stalled_fetch(bucket, behind, tmp_path):
    _, url, manifest = bucket
    proxy = behind(always("stall"), stall=60)
    code = f"""
from mrmfast.storage.config import FetchConfig
from mrmfast.storage.source import DatasetSource
from mrmfast.formats.manifest import Shard
with DatasetSource({url!r}, {str(tmp_path)!r}, config=FetchConfig(stall=1)) as source:
    source.local({manifest.shards[0]!r})
"""
    # Whoever starts the tests in the background of a shell without job control has told all of them to ignore SIGINT.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not proxy.paths and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")
