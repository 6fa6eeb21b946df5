"""``mrmfast train`` in one process: ``deepspeed mrmfast/train.py --config configs/demo.yaml [key=value ...]``.

Parses, builds, runs; everything else lives in ``mrmfast/training``.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from pathlib import Path

# Run as a script, Python puts mrmfast/ first on sys.path, where our modules would shadow others': use its parent.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

# Before the import of PyTorch, which reads it then: its C++ warnings of lost connections are stacks of many lines.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from mrmfast import config as configs
from mrmfast.errors import SharedError, UserError, os_error_message
from mrmfast.training.build import build
from mrmfast.training.engine import leave_world, prints_error, silent_ranks
from mrmfast.training.loop import run
from mrmfast.training.out_of_memory import is_out_of_memory, out_of_memory_message
from mrmfast.training.rendezvous import is_rank_failure, rank_failure_message
from mrmfast.training.settings import TrainConfig


def main(argv: list[str] | None = None) -> int:
    """Run training from the command line and leave the process group; return the exit status."""
    try:
        return _train(argv)
    finally:
        leave_world()


def _train(argv: list[str] | None) -> int:
    """Run training from the command line; return the exit status (2: an error that the user can fix)."""
    parser = argparse.ArgumentParser(description="Pre-train an image encoder with genetics (Masked Relation Modeling).")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML; see configs/")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    parser.add_argument(
        "--resume", choices=("auto", "never"), default="never", help="auto: resume from the latest complete checkpoint"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the deepspeed launcher
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. data.path=DATASET batch_size=64")
    arguments = parser.parse_intermixed_args(argv)
    shared = False
    config: TrainConfig | None = None
    try:
        config = configs.load(TrainConfig, arguments.config, arguments.overrides)
        if arguments.print_config:
            print(configs.dump(config), end="")
            return 0
        return run(build(config, resume=arguments.resume == "auto"))
    except UserError as error:
        message, shared = str(error), isinstance(error, SharedError)
    except (RuntimeError, MemoryError) as error:
        if config is None or not (is_rank_failure(error) or is_out_of_memory(error)):
            raise
        engine = config.engine
        if is_rank_failure(error):
            return _lost_ranks(engine.rank_timeout)
        message = out_of_memory_message(error, engine.micro_batch, config.batch_size, engine.activation_checkpointing)
    except OSError as error:
        described = os_error_message(error, config.run.folder if config else None)
        if described is None:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        message = f"{described}, then resume with --resume auto" if full else described
    # Ranks mostly meet the same error at once: one line is enough, and what only one of them meets is said by that one.
    if os.environ.get("RANK", "0") == "0" if shared else prints_error(message):
        print(f"mrmfast: error: {message}", file=sys.stderr)
    return 2


def _lost_ranks(limit: float) -> int:
    """Name the ranks that do not answer; return the exit status."""
    silent = silent_ranks()
    message = rank_failure_message(silent, limit)
    # The store that picks the rank that prints goes with rank 0.
    if os.environ["RANK"] == "1" if 0 in silent else prints_error(message):
        print(f"mrmfast: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
