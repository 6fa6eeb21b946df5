"""Servers on loopback for benchmarks: nginx as an anonymous object store, and a link with a delay and a rate."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# GET with ranges and HEAD of /bucket/key is all that reading a public bucket takes.
NGINX = """
daemon off; worker_processes 2; pid {work}/pid; error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log {work}/access.log; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  client_body_temp_path {work}; proxy_temp_path {work}; fastcgi_temp_path {work}; uwsgi_temp_path {work};
  scgi_temp_path {work};
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def free_port() -> int:
    """Return an unused port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return once `port` accepts connections."""
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.01)
    raise RuntimeError(f"{process.args!r}: does not listen")


class Nginx:
    """A running nginx.

    Attributes
    ----------
    port : int
    url : str
    """

    def __init__(self, port: int, log: Path) -> None:
        self.port, self.url, self._log = port, f"http://127.0.0.1:{port}", log

    def requests(self) -> int:
        """Return the number of requests answered so far."""
        return len(self._log.read_text().splitlines())


@contextmanager
def nginx(root: Path) -> Iterator[Nginx]:
    """Serve the folders in `root` as buckets."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    with tempfile.TemporaryDirectory(prefix="mrmfast-nginx-") as work:
        port = free_port()
        # Workers of an nginx that root starts run as another user, who may not enter temporary folders.
        user = "user root;" if os.geteuid() == 0 else ""
        (Path(work) / "nginx.conf").write_text(user + NGINX.format(work=work, port=port, root=root.resolve()))
        process = subprocess.Popen([program, "-c", f"{work}/nginx.conf", "-e", f"{work}/error.log"])
        try:
            wait_for(port, process)
            yield Nginx(port, Path(work) / "access.log")
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait(10)


@contextmanager
def link(port: int, delay: float = 0.0, rate: float = 0.0) -> Iterator[str]:
    """Put a link with `delay` seconds a round trip and `rate` bytes a second (0: unbounded) before `port`; its URL."""
    near = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.harness.link", str(near), str(port), str(delay), str(rate)]
    )
    try:
        wait_for(near, process)
        yield f"http://127.0.0.1:{near}"
    finally:
        process.terminate()
        process.wait(10)
