"""Which timm models a config or a stranger's file may name."""

from __future__ import annotations

import timm

from mrmfast.config import nearest
from mrmfast.errors import UserError
from mrmfast.yaml_text import shown


def require_model_name(name: object, where: str) -> str:
    """Return the name of a timm model that is part of the installed code.

    timm itself takes ``hf-hub:USER/NAME``, ``local-dir:FOLDER`` and more in place of a name, and fetches or reads them.

    Raises
    ------
    UserError
        No such model: neither timm nor this process has registered the name.
    """
    architecture, _, tag = name.partition(".") if isinstance(name, str) else ("", "", "")
    known = timm.list_models()
    if architecture not in known or (tag and name not in timm.list_pretrained()):
        near = nearest(architecture, [model for model in known if model.startswith("vit_")])
        hint = f"did you mean {near}?" if near else "take a timm vit_*_patch16_* name"
        raise UserError(f"{where}={shown(name)}: no such timm model; {hint}")
    return str(name)
