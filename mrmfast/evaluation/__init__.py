"""What a frozen encoder knows: evaluations by the name that a comparison uses; each is imported when it is used.

An evaluation is a module attribute with a ``Config`` dataclass and a function of config, encoder and data:
see :mod:`mrmfast.evaluation.base`.
"""

from __future__ import annotations

from importlib import import_module

from mrmfast.config import nearest
from mrmfast.errors import UserError
from mrmfast.evaluation.base import Evaluation

EVALUATIONS = {
    "linear_probe": "mrmfast.evaluation.linear_probe:LinearProbe",
}


def load_evaluation(name: str) -> type[Evaluation]:
    """Import the class of an evaluation.

    Raises
    ------
    UserError
        No evaluation has this name, or a library that it needs is not installed.
    """
    if name not in EVALUATIONS:
        near = nearest(name, list(EVALUATIONS))
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(EVALUATIONS)}"
        raise UserError(f"name={name}: no such evaluation; {hint}")
    module, _, attribute = EVALUATIONS[name].partition(":")
    try:
        loaded: type[Evaluation] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("mrmfast"):
            raise
        raise UserError(f"evaluation {name}: {error}; install it with pip install 'mrmfast[evaluate]'") from error
    return loaded
