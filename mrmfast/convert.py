"""Convert what an older version wrote: ``python -m mrmfast.convert OLD.yaml > NEW.yaml``.

Given a run's folder instead of a file, its ``config.yaml`` and its checkpoints are converted where they lie, so that
``--resume auto`` works.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from mrmfast import config as configs
from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats import checksums
from mrmfast.training.checkpoint import checkpoints, tensors_only
from mrmfast.training.settings import TrainConfig

# The image encoder of MRM was called `image`.
RENAMED_PARAMETERS = {"image.": "encoder."}


def convert_config(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the keys of this version; what has its key already stays."""
    flat = configs.flatten(tree)
    if isinstance(name := flat.pop("objective", None), str):
        flat = {"objective.name": name, **flat}
    elif any(TrainConfig.RENAMED.get(key, "").startswith("objective.") for key in flat):
        flat.setdefault("objective.name", "mrm")
    new: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = TrainConfig.RENAMED.get(key, key).split(".")
        section = new
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    configs.build(TrainConfig, new, "the converted config")
    return new


def convert_checkpoint(folder: Path) -> int:
    """Rename the parameters of a checkpoint; return the number of rewritten files."""
    written = 0
    for path in sorted(folder.glob("*model_states.pt")):
        with tensors_only():
            states: dict[str, Any] = torch.load(path, map_location="cpu")
        if rename_parameters(states):
            with write_aside(path, "wb") as file:
                torch.save(states, file)
            written += 1
    if written and (folder / checksums.NAME).exists():
        checksums.seal(folder)
    return written


def rename_parameters(states: dict[str, Any]) -> bool:
    """Rename in DeepSpeed's dict of a rank's model; return whether anything has an old name.

    ``module`` holds the weights by name (none under ZeRO-3), ``param_shapes`` the names of each group in the order in
    which ZeRO lays them out. That order does not change.
    """
    groups = [states.get("module") or {}, *(states.get("param_shapes") or [])]
    old = any(name.startswith(tuple(RENAMED_PARAMETERS)) for group in groups for name in group)
    for number, group in enumerate(groups):
        renamed = type(group)((_new_name(name), value) for name, value in group.items())
        if number:
            states["param_shapes"][number - 1] = renamed
        elif group:
            states["module"] = renamed
    return old


def _new_name(name: str) -> str:
    for old, new in RENAMED_PARAMETERS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def main(argv: list[str] | None = None) -> int:
    """Convert a config to standard output, or a run where it lies."""
    parser = argparse.ArgumentParser(description="Convert a config or a run of an older version.")
    parser.add_argument("path", type=Path, help="OLD.yaml (the new one is printed), or a run's folder")
    path: Path = parser.parse_args(argv).path
    try:
        if not path.is_dir():
            print(yaml.safe_dump(convert_config(configs.read(path)), sort_keys=False), end="")
            return 0
        config = path / "config.yaml"
        converted = yaml.safe_dump(convert_config(configs.read(config)), sort_keys=False)
        written = sum(convert_checkpoint(folder) for folder in checkpoints(path / "checkpoints"))
        # The config goes last: until then a second call converts everything again.
        with write_aside(config) as file:
            file.write(converted)
        print(f"mrmfast: {config} and {written} files of checkpoints converted", file=sys.stderr)
        return 0
    except UserError as error:
        print(f"mrmfast: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
