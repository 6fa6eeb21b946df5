"""Ranks as forked processes: a run without the seconds in which each would import PyTorch, DeepSpeed and timm.

A server (multiprocessing's forkserver) imports them once; each rank is a process of its own all the same, with its own
environment, output and exit status, to be interrupted or killed. What a user types is :func:`conftest.launch`.
"""

import multiprocessing
import os
import signal
import subprocess
import tempfile
import time
from multiprocessing import connection, forkserver
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
SERVER = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mrmfast.train", "deepspeed", "matplotlib.pyplot", "torch.utils.tensorboard"])


def run_rank(arguments, environment, output):
    """Be a rank: what ``python mrmfast/train.py`` is."""
    for descriptor, path in zip((1, 2), output, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    multiprocessing.set_start_method(None, force=True)  # what it starts itself is as in any other process
    from mrmfast.train import main

    raise SystemExit(main(arguments))


class Ranks:
    """Ranks under way.

    Parameters
    ----------
    arguments : list of str
        Of ``mrmfast/train.py``.
    ranks : int
    environment : dict of str to str
        Beside that of this process.
    port : int
        Where they meet.
    """

    def __init__(self, arguments, ranks, environment, port):
        self._arguments, self._folder = arguments, tempfile.TemporaryDirectory(prefix="mrmfast-ranks-")
        self._output = [Path(self._folder.name, name) for name in ("out", "err")]
        with mock.patch.dict(os.environ, SERVER):
            forkserver.ensure_running()
        world = {"WORLD_SIZE": ranks, "LOCAL_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self._processes = []
        for rank in range(ranks):
            own = {name: str(value) for name, value in {**world, "RANK": rank, "LOCAL_RANK": rank}.items()}
            everything = {**os.environ, **SERVER, **own, **environment}
            process = CONTEXT.Process(target=run_rank, args=(arguments, everything, self._output), daemon=True)
            process.start()
            self._processes.append(process)

    def send_signal(self, number):
        """Send a signal to every rank."""
        for process in self._processes:
            if process.is_alive():
                os.kill(process.pid, number)

    def kill(self):
        """SIGKILL every rank."""
        self.send_signal(signal.SIGKILL)
        return self.wait(10)

    def wait(self, timeout):
        """Return a CompletedProcess once all have ended; one that fails ends the others, as the launcher would."""
        deadline, running, failed = time.monotonic() + timeout, list(self._processes), 0
        while running:
            ended = connection.wait([one.sentinel for one in running], max(0, deadline - time.monotonic()))
            if not ended:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(self._arguments, timeout)
            for process in [one for one in running if one.sentinel in ended]:
                process.join()
                running.remove(process)
                failed = failed or process.exitcode
            if failed:
                for process in running:
                    process.terminate()
        out, err = (path.read_text() if path.exists() else "" for path in self._output)
        self._folder.cleanup()
        return subprocess.CompletedProcess(self._arguments, failed, out, err)
