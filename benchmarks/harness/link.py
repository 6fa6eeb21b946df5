"""A TCP relay in a process of its own, for benchmarks.harness.servers.

``python -m benchmarks.harness.link NEAR FAR DELAY RATE``

A round trip's delay is added to what the client sends, and once more to the first of a connection for its handshake:
in HTTP, where each request waits for its answer, that is when the answer comes. Answers pass through a pipe inside the
kernel (splice), or under one bucket of tokens for all connections where the rate is bounded. Slow start and loss are
not modelled.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading
import time

PIPE = 1 << 20


class Tokens:
    """One link's bytes: who sends waits until they are due."""

    def __init__(self, rate: float) -> None:
        self.rate, self._free, self._lock = rate, 0.0, threading.Lock()

    def spend(self, count: int) -> None:
        """Wait as long as `count` bytes take on the link, behind those before them."""
        with self._lock:
            now = time.monotonic()
            self._free = max(self._free, now - 0.01) + count / self.rate
            due = self._free
        if due > now:
            time.sleep(due - now)


def ask(client: socket.socket, server: socket.socket, delay: float) -> None:
    """Pass requests on, late."""
    pause = 2 * delay
    with contextlib.suppress(OSError):
        while data := client.recv(1 << 16):
            time.sleep(pause)
            pause = delay
            server.sendall(data)
        server.shutdown(socket.SHUT_WR)


def answer(client: socket.socket, server: socket.socket, tokens: Tokens | None) -> None:
    """Pass answers on."""
    with contextlib.suppress(OSError):
        if tokens is None:
            near, far = os.pipe()
            try:
                fcntl.fcntl(far, fcntl.F_SETPIPE_SZ, PIPE)
                while count := os.splice(server.fileno(), far, PIPE):
                    while count:
                        count -= os.splice(near, client.fileno(), count)
            finally:
                os.close(near)
                os.close(far)
        else:
            while data := server.recv(1 << 16):
                tokens.spend(len(data))
                client.sendall(data)
    for side in (client, server):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def main(near: int, far: int, delay: float, rate: float) -> None:
    """Relay until killed."""
    tokens = Tokens(rate) if rate else None
    with socket.create_server(("127.0.0.1", near), backlog=256) as door:
        while True:
            client, _ = door.accept()
            server = socket.create_connection(("127.0.0.1", far))
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=ask, args=(client, server, delay), daemon=True).start()
            threading.Thread(target=answer, args=(client, server, tokens), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
