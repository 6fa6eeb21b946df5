"""Out of memory, in one line that names the setting to lower."""

from __future__ import annotations

import torch

# Errors of CUDA's libraries and of the CPU allocator are plain RuntimeErrors, told apart by their text.
_TEXTS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that a GPU or the machine ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def out_of_memory_message(
    error: BaseException, micro_batch: int | str | None, batch_size: int, recomputing: bool
) -> str:
    """Name what ran out and the settings to change.

    Parameters
    ----------
    error : BaseException
    micro_batch : int, "auto" or None
        ``engine.micro_batch`` of the config.
    batch_size : int
    recomputing : bool
        Activation checkpointing is on already.
    """
    text = str(error)
    gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in text or "CUBLAS" in text or "CUDNN" in text
    given = (
        f"is {micro_batch}" if micro_batch is not None else f"is not set: all of batch_size={batch_size} over the ranks"
    )
    remedies = [f"lower engine.micro_batch (it {given})"]
    if not recomputing:
        remedies.append("set engine.activation_checkpointing=true")
    return f"out of {'GPU ' if gpu else ''}memory; {', or '.join(remedies)}, then resume with --resume auto"
