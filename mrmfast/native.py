"""C and C++ kernels: compiled at first use, kept in the cache, called through ctypes without the interpreter lock."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mrmfast.cache import cache_folder

COMPILERS = {".c": ("CC", ("cc", "gcc", "clang")), ".cpp": ("CXX", ("c++", "g++", "clang++"))}


def load(
    source: Path, flags: Sequence[str], *, name: str, otherwise: str, headers: Sequence[Path] = ()
) -> ctypes.CDLL | None:
    """Build a kernel where the cache lacks it, and load it.

    Parameters
    ----------
    source : Path
        One ``.c`` or ``.cpp`` file.
    flags : sequence of str
        Compiler flags; ``-march=native`` is safe, the cache tells processors apart.
    name : str
        Of the kernel, for the file and the warning.
    otherwise : str
        What happens without it, for the warning.
    headers : sequence of Path
        Files of ours that the source includes; a change of theirs builds it anew.

    Returns
    -------
    ctypes.CDLL or None
        None, and a warning, where it cannot be built.
    """
    flags = ("-shared", "-fPIC", *flags)
    code = b"".join(path.read_bytes() for path in (source, *headers))
    key = hashlib.sha256(code + " ".join(flags).encode() + _processor().encode()).hexdigest()[:16]
    final = cache_folder() / "kernels" / f"{name}-{key}.so"
    try:
        if not final.exists():
            _build(source, flags, final)
        return ctypes.CDLL(str(final))
    except (OSError, subprocess.CalledProcessError) as error:
        variable, compilers = COMPILERS[source.suffix]
        warnings.warn(
            f"{name}: no compiled CPU path ({type(error).__name__}); install a compiler ({', '.join(compilers)}), or "
            f"point {variable} at one and MRMFAST_CACHE at a writable folder. {otherwise} meanwhile",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


def _build(source: Path, flags: Sequence[str], final: Path) -> None:
    variable, compilers = COMPILERS[source.suffix]
    compiler = os.environ.get(variable) or next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise FileNotFoundError(compilers[0])
    final.parent.mkdir(parents=True, exist_ok=True)
    # Ranks may build at the same moment: each aside, and the last rename wins.
    descriptor, aside = tempfile.mkstemp(dir=final.parent, suffix=".so.partial")
    os.close(descriptor)
    try:
        subprocess.run([compiler, *flags, "-o", aside, str(source)], check=True, capture_output=True)
        os.replace(aside, final)
    finally:
        Path(aside).unlink(missing_ok=True)


@cache
def _processor() -> str:
    """Return what ``-march=native`` depends on; a cache folder may be shared by unlike machines."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else [platform.processor()]
    seen = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return platform.machine() + "".join(sorted(seen))
