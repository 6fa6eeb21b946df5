"""The default number of decoding threads on this machine."""

from __future__ import annotations

import os

# With DALI on one GPU, 8 feed it 45 times faster than it trains. On the CPU path 14 were slower than 4 (one machine of
# 16 cores, before the threads took the interpreter lock less often); more than 8 were never shown to be faster.
MOST = 8
LOCAL_RANKS = ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")  # deepspeed, torchrun, Open MPI


def ranks_on_this_node() -> int:
    """Return how many ranks the launcher has started on this machine; 1 without a launcher."""
    for name in LOCAL_RANKS:
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return 1


def decode_threads(threads: int | None) -> int:
    """Return the number of threads that a rank decodes with.

    Parameters
    ----------
    threads : int, optional
        ``data.threads``; None takes the cores that this process may use, shared among the ranks of the machine, and
        at most MOST.

    Returns
    -------
    int
        At least 1.
    """
    if threads is not None:
        return threads
    cores = len(os.sched_getaffinity(0))  # a container or a scheduler may give fewer than the machine has
    return max(1, min(MOST, cores // ranks_on_this_node()))
