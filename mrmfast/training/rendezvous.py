"""How ranks meet, and what a run says when they do not, or when one of them stops answering."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import torch

from mrmfast.errors import UserError

ROLL_CALL, ANSWER = "mrmfast/roll_call", "mrmfast/present/"
POLL, PATIENCE = 0.5, 4.0  # seconds: between looks for a roll call; for answers to it
# Errors of gloo's collectives are plain RuntimeErrors, told apart by their text.
_TEXTS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL")
_PORTS = "deepspeed --master_port 29501 ..., torchrun --master_port 29501 ..., or MASTER_PORT=29501"


def prepare_environment() -> None:
    """Make a world of one where no launcher has set the variables of a world, and check those that are set.

    Raises
    ------
    UserError
        A variable holds no number, or a port that does not exist.
    """
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    size, rank, _ = (_number(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank}, WORLD_SIZE={size}: ranks count from 0 to WORLD_SIZE - 1; start with a launcher")
    if not 0 < _number("MASTER_PORT") < 2**16:
        raise UserError(f"MASTER_PORT={os.environ['MASTER_PORT']}: ports are 1 to 65535; give another, e.g. 29501")


def explain_rendezvous(error: Exception, limit: float) -> UserError:
    """Say in one line why the ranks did not meet within `limit` seconds."""
    host, port, text = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], str(error)
    rank, size = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if "EADDRINUSE" in text or "already in use" in text:
        return UserError(
            f"MASTER_PORT={port}: address already in use, by another training or program; give another port: {_PORTS}"
        )
    if "gai error" in text or "cannot be retrieved" in text or "ame or service not known" in text:
        return UserError(f"MASTER_ADDR={host}: no machine has this name; give the name or address of rank 0's machine")
    if rank == "0":
        return UserError(
            f"not all of the {size} ranks came to {host}:{port} within {limit:g} s (engine.rank_timeout); check that "
            "all were started with the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE, and see their own messages"
        )
    return UserError(
        f"rank {rank} cannot reach rank 0 at {host}:{port} within {limit:g} s (engine.rank_timeout); check MASTER_ADDR "
        "and MASTER_PORT, that rank 0 runs, and that a firewall lets the port pass"
    )


def is_rank_failure(error: BaseException) -> bool:
    """Tell whether an error means that ranks lost each other during a run."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return False
    lost = isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)
    return lost or isinstance(error, torch.distributed.DistError)


def rank_failure_message(silent: list[int], limit: float) -> str:
    """Say in one line which ranks do not answer.

    Parameters
    ----------
    silent : list of int
        Of :meth:`RollCall.silent_ranks`.
    limit : float
        ``engine.rank_timeout``, seconds.
    """
    remedy = "then resume with --resume auto"
    if not silent:
        return (
            f"a step did not end within {limit:g} s (engine.rank_timeout) although all ranks run; check the network "
            f"and the disks of all nodes, or raise the limit; {remedy}"
        )
    names = ", ".join(map(str, silent[:8])) + (f" and {len(silent) - 8} more" if len(silent) > 8 else "")
    subject = f"rank {names} does" if len(silent) == 1 else f"ranks {names} do"
    return (
        f"{subject} not answer: ended, killed or stopped (limit: engine.rank_timeout={limit:g} s); see the messages "
        f"and the machine of that rank, {remedy}"
    )


class RollCall:
    """Finds out which ranks of a world still run, by the store through which they met.

    A thread of each rank looks for a roll call and answers it, also while the rank waits in a collective. A process
    that was killed or stopped does not answer.

    Parameters
    ----------
    store : torch.distributed.Store
    rank, size : int
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="mrmfast-roll-call", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join(PATIENCE)

    def silent_ranks(self) -> list[int]:
        """Call the roll; return the ranks without an answer, rank 0 where its store has gone."""
        silent: list[int] = [0]

        def call() -> None:
            self._store.set(ROLL_CALL, "1")
            end = time.monotonic() + PATIENCE
            waiting = set(range(self._size)) - {self._rank}
            while waiting and time.monotonic() < end:
                waiting = {rank for rank in waiting if not self._store.check([f"{ANSWER}{rank}"])}
                time.sleep(POLL / 5)
            silent[:] = sorted(waiting)

        def guarded() -> None:
            try:
                call()
            except RuntimeError:  # rank 0 holds the store, and is gone
                silent[:] = [0]

        # In a thread: the answer of a store whose process is stopped never comes.
        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        thread.join(2 * PATIENCE)
        return list(silent)

    def _answer(self) -> None:
        try:
            while not self._closing.wait(POLL):
                if self._store.check([ROLL_CALL]):
                    self._store.set(f"{ANSWER}{self._rank}", "1")
                    return
        except RuntimeError:  # the store has gone with rank 0: nobody asks any more
            return


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.strip().isdecimal():
        raise UserError(f"{name}={text}: is no number; launchers set it (deepspeed, torchrun), or unset it")
    return int(text)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
