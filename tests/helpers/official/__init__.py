"""Golden values of published implementations, and a runner per method that computes ours.

A JSON file says which repository, at which commit, and what was run. `files` reads the folder that the environment
variable ``MRMFAST_OFFICIAL`` names; by default ``../shared/official`` beside the repository, and the copies in
``tests/golden/official`` where that is missing.

A runner is a module of this package with the name of the method (letters and digits, lower case):

- ``run(file, case) -> Checks``: builds our model at the case's sizes, fills it, and compares what ``expected`` holds.
- ``facts(file) -> Checks``: compares the facts that are numbers (`numeric_facts`); needed where a file has some.
"""

import importlib
import json
import os
import pkgutil
import re
from pathlib import Path

from tests.helpers.official.checks import Checks, leaves, stat_differences
from tests.helpers.official.formula import fill, image, positive, symmetric

__all__ = [
    "Checks",
    "fill",
    "image",
    "input_of",
    "leaves",
    "numeric_facts",
    "positive",
    "runner",
    "stat_differences",
    "symmetric",
]

ROOT = Path(__file__).resolve().parents[3]
SHARED, COPIES = ROOT.parent / "shared" / "official", ROOT / "tests" / "golden" / "official"
HELPERS = {"building", "checks", "formula"}


def folder():
    """Return the folder of the JSON files."""
    if given := os.environ.get("MRMFAST_OFFICIAL"):
        return Path(given)
    return SHARED if SHARED.is_dir() else COPIES


def files():
    """Return the files by name; there has to be one."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder().glob("*.json"))}
    assert found, f"{folder()}: no JSON file"
    return found


def runner(method):
    """Import the runner of a file's ``method``: the module whose name the method's begins with."""
    name = re.sub(r"[^a-z0-9]", "", method.lower())
    modules = [module.name for module in pkgutil.iter_modules(__path__) if module.name not in HELPERS]
    fitting = [module for module in modules if name.startswith(module)]
    if not fitting:
        raise LookupError(f"method {method!r}: no runner; there are {modules}")
    return importlib.import_module(f"{__name__}.{max(fitting, key=len)}")


def numeric_facts(file):
    """Return the facts that are values, not prose: dicts of numbers, whatever text stands beside them."""
    return {name: fact for name, fact in file["facts"].items() if isinstance(fact, dict) and _of_numbers(fact)}


def _of_numbers(fact):
    values = [value for key, value in fact.items() if key not in ("what", "note")]
    return bool(values) and not any(isinstance(value, str) for value in values)


def input_of(checks, case, name, make=None):
    """Make an input of a case by its formula, and compare it with its summary.

    Parameters
    ----------
    checks : Checks
    case : dict
    name : str
        In ``case["inputs"]``.
    make : callable, optional
        (k, phase, shape) -> Tensor; by default what ``kind`` says, `image` where it says nothing.
    """
    entry = case["inputs"][name]
    make = make or {"w": positive, "u": symmetric, None: image}[entry.get("kind")]
    made = make(entry["k"], case["phase"], entry["shape"])
    if "stat" in entry:
        checks.failures += [f"input {name}: {line}" for line in stat_differences(made, entry["stat"])]
    return made
