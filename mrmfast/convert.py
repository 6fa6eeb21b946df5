"""Convert what an older version wrote: ``python -m mrmfast.convert OLD.yaml > NEW.yaml``.

Given a run's folder instead of a file, its ``config.yaml`` and its checkpoints are converted where they lie, so that
``--resume auto`` works.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mrmfast import config as configs
from mrmfast.atomic import write_aside
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
    """Rename the parameters of a checkpoint; return how many files were written anew."""
    written = 0
    for path in sorted(folder.glob("*model_states.pt")):
        states: dict[str, Any] = _load(path)
        before = repr([_names(states[key]) for key in ("module", "param_shapes") if states.get(key) is not None])
        if states.get("module"):
            states["module"] = {_renamed(name): value for name, value in states["module"].items()}
        if states.get("param_shapes"):
            groups = states["param_shapes"]
            states["param_shapes"] = [type(part)((_renamed(k), v) for k, v in part.items()) for part in groups]
        after = repr([_names(states[key]) for key in ("module", "param_shapes") if states.get(key) is not None])
        if before != after:
            with write_aside(path, "wb") as file:
                torch.save(states, file)
            written += 1
    return written
