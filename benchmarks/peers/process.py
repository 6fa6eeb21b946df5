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
        Most of them at a time, then.
    first : dict
        What that epoch gave: ``pictures``, ``shape``, ``dtype``, ``mean``.

    Raises
    ------
    RuntimeError
        The loader cannot be started, or fails; with the end of what it said.
    """

    def __init__(self, name: str, task: Task, interpreter: str = sys.executable) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [interpreter, "-m", "benchmarks.peers.turns", f"benchmarks.peers.{name}", *task.arguments()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
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
                for one in (root, *root.children(recursive=True)):
                    memory += one.memory_full_info().pss
                    threads += one.num_threads()
                    processes += 1
            except (psutil.Error, OSError):  # one of them has just ended
                continue
            self.memory = max(self.memory, memory)
            self.threads, self.processes = max(self.threads, threads), max(self.processes, processes)

    def epoch(self) -> dict[str, Any]:
        """Let it do an epoch; return ``seconds``, ``pictures`` and what the last batch was."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._said.seek(0)
            lines = self._said.read().strip().splitlines() or ["it said nothing"]
            raise RuntimeError(lines[-1])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            for one in psutil.Process(self._process.pid).children(recursive=True):
                one.kill()
            self._process.kill()
            self._process.wait()
        self._said.close()
