"""Start a process per GPU with DeepSpeed's launcher of one node."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from types import FrameType

from mrmfast import config as configs
from mrmfast.command import INTERRUPTED
from mrmfast.errors import UserError


def choose_devices(file: str, overrides: list[str], gpus: int | None) -> list[str]:
    """Return the devices to start a process on each; none where this process trains alone.

    Parameters
    ----------
    file : str
        Config.
    overrides : list of str
        ``key=value``.
    gpus : int or None
        Wanted number; None: all GPUs that are visible.

    Raises
    ------
    UserError
        The config is wrong (said before anything is started), or there are fewer GPUs.
    """
    if gpus == 1:
        return []
    import torch

    count = torch.cuda.device_count()
    if gpus is None and count <= 1:
        return []
    from mrmfast.training.settings import TrainConfig

    config = configs.load(TrainConfig, file, overrides)
    if config.engine.device == "cpu":
        return [str(number) for number in range(gpus or 0)]
    requested = gpus or count
    if requested > count:
        raise UserError(
            f"--gpus {requested}: {count} GPUs are visible; check nvidia-smi and CUDA_VISIBLE_DEVICES, "
            f"or use engine.device=cpu for {requested} processes on the CPU"
        )
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (names or [str(number) for number in range(requested)])[:requested]


def command_line(devices: list[str], argv: list[str], port: int) -> list[str]:
    """Return the command that starts ``mrmfast/train.py`` once per device.

    This is what ``deepspeed mrmfast/train.py`` starts on one node. The program ``deepspeed`` around it is not used
    because it does not pass SIGTERM on, and would leave the training running.
    """
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices}).encode()).decode()
    script = importlib.util.find_spec("mrmfast.train")
    assert script is not None and script.origin is not None
    launcher = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}", "--quiet"]
    return [*launcher, "--master_addr=127.0.0.1", f"--master_port={port}", script.origin, *argv]


def run(devices: list[str], argv: list[str]) -> int:
    """Train with one process per device; return the exit status.

    Ctrl-C, SIGTERM and the end of the terminal reach the launcher once, whose processes then write a checkpoint.
    """
    # A session of its own: Ctrl-C would otherwise reach every process directly too, and a second signal ends a rank
    # without a checkpoint.
    process = subprocess.Popen(command_line(devices, argv, _free_port()), start_new_session=True)
    interrupted = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            process.terminate()

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) != signal.SIG_IGN:  # nohup
            signal.signal(name, stop)
    status = process.wait()
    return INTERRUPTED if interrupted else abs(status)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
