"""Removes the modalities of a killed ``expression`` run; the rerun writes all modalities again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from mrmfast.errors import UserError
from mrmfast.formats.genetics import STORE
from mrmfast.formats.manifest import read_manifest


def clear_unfinished(dataset: Path, modalities: list[str], unit: str) -> None:
    """Remove the modalities that a killed run of the same unit wrote.

    Raises
    ------
    UserError
        The unit is complete, or a modality comes from another table or other settings.
    """
    listed = read_manifest(dataset).genetics
    present = [name for name in modalities if (dataset / STORE / name).exists()]
    complete = len(present) == len(modalities) and all(name in listed for name in modalities)
    for name in present:
        final = dataset / STORE / name
        try:
            is_ours = json.loads((final / "zarr.json").read_text())["attributes"].get("unit") == unit
        except (OSError, ValueError, KeyError):
            is_ours = False
        if complete or not is_ours:
            raise UserError(f"{final}: already exists; remove this folder to rebuild it")
    for name in present:
        # Renamed first: neither a reader nor a second kill may leave an incomplete modality in the store.
        aside = dataset / f".{name}.zarr.unfinished"
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(dataset / STORE / name, aside)
        shutil.rmtree(aside)
