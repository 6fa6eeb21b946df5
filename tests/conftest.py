"""Fixtures of all tests: a tiny dataset, an S3 server. At the end of a run: what was skipped, and why."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.helpers.common import write_dataset
from tests.helpers.skips import pytest_terminal_summary

__all__ = ["pytest_terminal_summary"]

# Packed genetics and compiled kernels are kept in the node's cache: tests must not fill the user's. Set here and not in
# a helper: a process that a test starts inherits this folder, and must not get another one by importing the helper.
_CACHE = tempfile.TemporaryDirectory(prefix="mrmfast-test-cache-")
os.environ["MRMFAST_CACHE"] = _CACHE.name


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A dataset of 24 images of 12 participants with three modalities."""
    return write_dataset(tmp_path_factory.mktemp("data") / "ds")


@pytest.fixture
def upload(s3, monkeypatch):
    """The environment of the S3 server set in this process; returns the function that uploads a folder."""
    environment, send = s3
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return send


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """A moto S3 server on loopback: yields its environment and a function that uploads a folder."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MRMFAST_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
        region_name="us-east-1",
    )

    def upload(folder: Path, bucket: str) -> str:
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), bucket, f"ds/{path.relative_to(folder)}")
        return f"s3://{bucket}/ds"

    yield environment, upload
    server.stop()
