"""The configs that come with mrmfast, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from mrmfast.errors import UserError

# A link to configs/ in a checkout; the files themselves in a wheel.
FOLDER = Path(__file__).resolve().parents[1] / "_configs"


def shipped() -> dict[str, Path]:
    """Return the files by name: ``ukb_base``, ``objectives/simclr``."""
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.glob("**/*.yaml"))}


def find(name: str) -> str:
    """Return the file of a config: `name` where that is a file, else the one that comes with mrmfast.

    Raises
    ------
    UserError
        Neither a file nor a name.
    """
    if Path(name).is_file():
        return name
    files = shipped()
    if name in files:
        return str(files[name])
    near = difflib.get_close_matches(name, files, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give a YAML file, or one of {', '.join(files)}"
    raise UserError(f"--config {name}: no such file and no such config; {hint}")
