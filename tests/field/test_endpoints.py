"""Addresses that are none: of an object store, of the machine where ranks meet; and ranks that do not answer."""

import os
import signal
import socket
import threading
import time

import pytest

from mrmfast.errors import UserError
from mrmfast.meters import Meters
from mrmfast.storage.client import Client
from mrmfast.storage.config import FetchConfig
from mrmfast.training.rendezvous import explain_rendezvous, prepare_environment, rank_failure_message
from tests.helpers.common import start, tiny_run, train

WRONG = [
    "minio:9000",
    "127.0.0.1:9",
    "https//host",
    "http:/host",
    "http://127.0.0.1:9 ",
    "ftp://host",
    "http://",
    "//host:9",
]
PANIC = ["http://h\u00e9:9", "http://%zz/", "http://[::1", "http://host:99999"]


@pytest.fixture
def aws(monkeypatch, tmp_path):
    """An environment without any setting of AWS; returns the function that writes the configuration file."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return (tmp_path / "config").write_text


def complaint(**options):
    """What a read from a bucket ends with."""
    config = FetchConfig(stall=0.2, deadline=0.2)
    client = Client("s3://bucket/ds", {"anon": True, **options}, config, Meters(), threading.Event())
    with pytest.raises(UserError) as caught:
        client.read("dataset.json")
    client.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", WRONG + PANIC)
def test_an_endpoint_that_is_no_url_is_named_with_its_remedy(value, aws, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, value)
        message = complaint()
        assert message.startswith(f"{name}=") and "http" in message.split(": ", 1)[1]
        monkeypatch.delenv(name)


def test_an_endpoint_of_a_profile_and_of_its_services_section_is_used_and_checked(aws, monkeypatch):
    aws(
        "[default]\nservices = minio\n[services minio]\ns3 =\n  endpoint_url = minio:9000\n"
        "[profile old]\nendpoint_url = host:1\n[profile right]\nservices = near\n"
        "[services near]\ns3 =\n  endpoint_url = http://127.0.0.1:9\n"
    )
    assert "profile default in the AWS configuration file='minio:9000'" in complaint()
    monkeypatch.setenv("AWS_PROFILE", "old")
    assert "profile old in the AWS configuration file='host:1'" in complaint()
    monkeypatch.setenv("AWS_PROFILE", "right")
    assert "cannot connect to the object store" in complaint()  # nobody listens on port 9


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_endpoint_counts_as_unset(value, aws, monkeypatch):
    aws("[default]\nendpoint_url = http://127.0.0.1:9\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    assert "cannot connect to the object store" in complaint()


def test_an_endpoint_given_by_the_caller_is_checked_and_its_password_not_shown(aws):
    assert "has no scheme" in complaint(endpoint="minio:9000")
    assert "PW" not in complaint(endpoint="http://user:PW@host/a b")


def test_a_panic_of_the_client_is_one_line(aws, monkeypatch):
    panic = type("PanicException", (BaseException,), {})

    def read(*arguments, **more):
        raise panic("request valid: InvalidUri")

    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("mrmfast.storage.object_store.obstore.get", read)
    assert "client cannot use this address" in complaint()
    monkeypatch.setattr(
        "mrmfast.storage.object_store.obstore.get", lambda *a, **m: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        complaint()


@pytest.mark.parametrize(
    ("name", "value"),
    [("MASTER_PORT", "x"), ("MASTER_PORT", "70000"), ("WORLD_SIZE", "two"), ("RANK", "2"), ("LOCAL_RANK", "")],
)
def test_variables_of_a_world_that_are_no_numbers_are_named(name, value, monkeypatch):
    for variable, number in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(variable, number)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=name):
        prepare_environment()


def test_a_machine_that_has_no_name_is_named(monkeypatch):
    for variable, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "nowhere"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(variable, value)
    gai = RuntimeError("The IPv6 network addresses of (nowhere, 1) cannot be retrieved (gai error: -2)")
    assert "MASTER_ADDR=nowhere: no machine has this name" in str(explain_rendezvous(gai, 5))
    assert "rank 1 cannot reach rank 0 at nowhere:1" in str(explain_rendezvous(RuntimeError("timed out"), 5))


def test_silent_ranks_are_listed():
    assert "ranks 1, 3 do not answer" in rank_failure_message([1, 3], 9)
    assert "and 12 more" in rank_failure_message(list(range(20)), 9)
    assert "although all ranks run" in rank_failure_message([], 9)


def one_error(done):
    """The one line with which a run ended."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("mrmfast: error:")]
    assert "Traceback" not in done.stderr and len(errors) == 1, done.stderr[-2000:]
    return errors[0]


@pytest.mark.slow
def test_a_port_that_is_taken_is_named_with_the_option_of_the_launchers(tmp_path, dataset):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = train(*tiny_run(tmp_path, dataset), environment={"MASTER_PORT": port})
    assert done.returncode == 2
    message = one_error(done)
    assert f"MASTER_PORT={port}: address already in use" in message and "--master_port 29501" in message


@pytest.mark.slow
def test_ranks_that_do_not_come_are_waited_for_only_so_long(tmp_path, dataset):
    arguments = tiny_run(tmp_path, dataset, **{"engine.rank_timeout": 2})
    done = train(*arguments, environment={"WORLD_SIZE": "2"})
    assert done.returncode == 2
    assert "not all of the 2 ranks came" in one_error(done)


@pytest.mark.slow
@pytest.mark.parametrize("silent", [1])
def test_a_rank_that_is_stopped_is_named(silent, tmp_path, dataset):
    arguments = tiny_run(tmp_path, dataset, steps=100_000, **{"engine.rank_timeout": 12})
    ranks = start(*arguments, ranks=2)
    try:
        metrics, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert time.monotonic() < end, "no step in two minutes"
            time.sleep(0.1)
        stopped, other = ranks._processes[silent], ranks._processes[1 - silent]
        os.kill(stopped.pid, signal.SIGSTOP)
        other.join(90)
        assert other.exitcode == 2
    finally:
        done = ranks.kill()
    assert f"rank {silent} does not answer" in one_error(done)
