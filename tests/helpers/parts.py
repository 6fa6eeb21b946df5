"""Parts for the tests of the parallel runner; at module level, because worker processes import them."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import numpy as np

from mrmfast.errors import UserError
from preprocess.images.outcome import Outcome, ProcessedImage
from preprocess.images.sources import SourceFile


def append_number(folder: Path, number: int) -> int:
    """Record that a part ran; return its square."""
    with open(folder / f"ran-{number}", "a") as file:
        file.write("x")
    return number * number


def kill_once(folder: Path, number: int) -> int:
    """As append_number, but number 3 kills its worker the first time."""
    if number == 3 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return append_number(folder, number)


def kill_always(folder: Path, number: int) -> int:
    """As append_number, but number 3 kills its worker each time."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return append_number(folder, number)


def user_error(folder: Path, number: int) -> int:
    """Number 3 raises an error of the user."""
    if number == 3:
        raise UserError("three.txt: is damaged; copy it again")
    return append_number(folder, number)


def disk_full(folder: Path, number: int) -> int:
    """Number 3 finds the disk full."""
    if number == 3:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))
    return append_number(folder, number)


def one_image(path: Path, source: SourceFile) -> Outcome:
    """Make a flat image of a file; a file that says ``crash`` kills its worker, as a decoder's fault does."""
    text = path.read_text()
    if text == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return Outcome([ProcessedImage(np.full((16, 16, 3), int(text), np.uint8), {})])
