"""mrmfast: streaming pre-training of medical image encoders, with or without genetics.

>>> from mrmfast import load_encoder, open_dataset

Both are imported on use, so that ``import mrmfast`` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrmfast.data.dataset import open_dataset
    from mrmfast.models.export import load_encoder

__all__ = ["__version__", "load_encoder", "open_dataset"]
__version__ = "0.1.0"

_PUBLIC = {"load_encoder": "mrmfast.models.export", "open_dataset": "mrmfast.data.dataset"}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
