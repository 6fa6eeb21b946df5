"""An HTTP proxy that breaks answers on purpose, between a client and an object store's server. Tests use it, too."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

ERROR = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
# Faults of an answer: an error status, a reset or an end halfway, a pause halfway, a complete answer that is shorter
# than the requested range (with its length, or in chunks without one), a changed byte, a slow answer, a server restart.
KINDS = ("500", "503", "reset", "stall", "truncation", "wrong length", "chunked", "flip", "slow", "restart")


class FaultProxy:
    """Forward requests to `upstream` and apply the fault that `choose` returns to the answer.

    Parameters
    ----------
    upstream : (str, int)
        Host and port of the server.
    choose : callable
        Path of a request -> a name of ``KINDS`` (or another HTTP status), or None to leave it alone. Called from many
        threads, one at a time.
    stall : float
        Seconds that a stalled answer stays open.
    slow : float
        Seconds that a slow answer takes.
    away : float
        Seconds that a restarted server is away.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        choose: Callable[[str], str | None],
        *,
        stall: float = 30.0,
        slow: float = 0.3,
        away: float = 0.3,
    ) -> None:
        self.upstream, self.choose, self.stall, self.slow, self.away = upstream, choose, stall, slow, away
        self.paths: list[str] = []
        self.lock = threading.Lock()
        self._restarting = threading.Lock()
        self.connections: set[socket.socket] = set()
        self._listen(0)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._restarting:
            self._hang_up()

    def restart(self) -> None:
        """Go away with all connections, and come back at the same port."""
        if not self._restarting.acquire(blocking=False):
            return
        try:
            self._hang_up()
            time.sleep(self.away)
            self._listen(self.port)
        finally:
            self._restarting.release()

    def _listen(self, port: int) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", port), _Handler, bind_and_activate=False)
        server.allow_reuse_address, server.daemon_threads, server.block_on_close = True, True, False
        server.request_queue_size = 128
        server.server_bind()
        server.server_activate()
        server.proxy = self  # type: ignore[attr-defined]
        self._server = server
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def _hang_up(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def proxy(self) -> FaultProxy:
        return self.server.proxy  # type: ignore[attr-defined]

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.proxy.connections.add(self.connection)

    def finish(self) -> None:
        self.proxy.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        with self.proxy.lock:
            self.proxy.paths.append(self.path)
            fault = self.proxy.choose(self.path)
        with contextlib.suppress(OSError):
            self._answer(fault)

    do_HEAD = do_GET

    def _answer(self, fault: str | None) -> None:
        if fault == "restart":
            self.close_connection = True
            threading.Thread(target=self.proxy.restart, daemon=True).start()
            return
        if fault and fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", str(len(ERROR)))
            self.end_headers()
            self.wfile.write(ERROR)
            return
        upstream = http.client.HTTPConnection(*self.proxy.upstream, timeout=30)
        try:
            upstream.request(self.command, self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            body, headers, status = answer.read(), dict(answer.getheaders()), answer.status
        finally:
            upstream.close()
        whole, half = len(body), len(body) // 2
        if fault == "flip" and body:
            body = body[:half] + bytes([body[half] ^ 0x10]) + body[half + 1 :]
        if fault in ("wrong length", "chunked"):
            body = body[:half]
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif self.command == "HEAD":
            self.send_header("Content-Length", headers.get("Content-Length", "0"))
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "chunked":
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n")
        elif fault in ("reset", "truncation", "stall"):
            self.wfile.write(body[:half])
            if fault == "stall":
                select.select([self.connection], [], [], self.proxy.stall)  # until the client hangs up
            if fault == "reset":
                time.sleep(0.05)  # so that the half arrives before the reset drops what is queued
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True
        elif fault == "slow":
            for start in range(0, whole, step := max(1, whole // 20)):
                self.wfile.write(body[start : start + step])
                time.sleep(self.proxy.slow / 20)
        else:
            self.wfile.write(body)
