"""Loaders in processes of their own that take turns; memory, threads and processes while they warm up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.task import Task

ROOT = Path(__file__).resolve().parents[2]
INTERVAL = 0.2  # seconds between two looks at a process


class Process:
    """A loader that does an epoch whenever it is asked to.

    Parameters
    ----------
    name : str
        ``module:Class`` in ``benchmarks.peers``.
    task : Task
    interpreter : str
        Python that the loader is installed for.

    Attributes
    ----------
    memory : int
        Peak of the proportional set size (shared pages are counted once) of the process and its children, bytes, in
        the epoch that is not timed.
    threads, processes : int
        Largest number at a time in that epoch.
    first : dict
        Answer of that epoch: ``images``, ``shape``, ``dtype``, ``mean``.

    Raises
    ------
    RuntimeError
        The loader cannot be started, or fails; with the last line of its output.
    """

    def __init__(self, name: str, task: Task, interpreter: str = sys.executable) -> None:
        self._printed = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [interpreter, "-m", "benchmarks.peers.turns", f"benchmarks.peers.{name}", *task.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.memory = self.threads = self.processes = 0
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,))
        watcher.start()
        try:
            self.first = self.epoch()
        except BaseException:
            self.close()
            raise
        finally:
            done.set()
            watcher.join()

    def _watch(self, done: threading.Event) -> None:
        root = psutil.Process(self._process.pid)
        while not done.wait(INTERVAL):
            memory = threads = processes = 0
            try:
                for member in (root, *root.children(recursive=True)):
                    memory += member.memory_full_info().pss
                    threads += member.num_threads()
                    processes += 1
            except (psutil.Error, OSError):  # a process has just ended
                continue
            self.memory = max(self.memory, memory)
            self.threads, self.processes = max(self.threads, threads), max(self.processes, processes)

    def epoch(self) -> dict[str, Any]:
        """Let the loader do an epoch; return ``seconds``, ``images`` and the last batch's shape and type."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._printed.seek(0)
            lines = self._printed.read().strip().splitlines() or ["no message"]
            raise RuntimeError(lines[-1])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process and its children."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(self._process.pid).children(recursive=True):
                child.kill()
            self._process.kill()
            self._process.wait()
        self._printed.close()
