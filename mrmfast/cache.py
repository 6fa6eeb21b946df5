"""The cache folder of this machine: downloaded shards, packed genetics, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(cache: str | None = None) -> Path:
    """Return the node's cache: `cache`, else ``MRMFAST_CACHE``, else one under the user's cache folder."""
    return Path(cache or os.environ.get("MRMFAST_CACHE") or Path.home() / ".cache" / "mrmfast").expanduser()
