"""One loader's process: opens it, then does an epoch whenever it is told to, and says how long that took.

``python -m benchmarks.peers.turns MODULE:CLASS [task]``; a line of input is an epoch, a line of JSON the answer. Each
process waits between its turns, so loaders take turns without starting anew.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from benchmarks.peers.task import parse


def picture_of(batch: Any) -> Any:
    """Return the images of a batch, whatever the loader wraps them in."""
    while isinstance(batch, (list, tuple)):
        batch = batch[0]
    if isinstance(batch, dict):
        batch = batch["jpg"]
    return batch.views[0] if hasattr(batch, "views") else batch


def serve(epoch: Callable[[], Any], output: TextIO) -> None:
    """Answer lines of standard input until it ends; the first epoch, which warms up, also looks at the images."""
    first = True
    for _ in sys.stdin:
        start, pictures, total = time.perf_counter(), 0, 0.0
        last: Any = None
        for batch in epoch():
            last = picture_of(batch)
            pictures += len(last)
            if first and hasattr(last, "float"):
                total += float(last.float().mean()) * len(last)
        answer: dict[str, Any] = {"seconds": time.perf_counter() - start, "pictures": pictures}
        if first and hasattr(last, "float"):
            answer |= {"shape": list(last.shape[1:]), "dtype": str(last.dtype).removeprefix("torch.")}
            answer["mean"] = total / pictures
        first = False
        print(json.dumps(answer), file=output, flush=True)


if __name__ == "__main__":
    # Loaders and their workers print: answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    peer = getattr(importlib.import_module(module), name)(parse(sys.argv[2:]))
    serve(peer.epoch, answers)
