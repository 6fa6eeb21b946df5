"""C and C++ kernels: compiled at first use, kept in the cache, called through ctypes without the interpreter lock."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from mrmfast.atomic import commit_file, partial_path, write_aside
from mrmfast.cache import cache_folder

COMPILERS = {".c": ("CC", ("cc", "gcc", "clang")), ".cpp": ("CXX", ("c++", "g++", "clang++"))}
POINTER, INT, INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
SIZE, SSIZE = ctypes.c_size_t, ctypes.c_ssize_t
Signature = tuple[Sequence[Any], Any]
"""Types of a function's arguments, and of its result (None: void)."""


def load(
    source: Path,
    flags: Sequence[str],
    *,
    name: str,
    otherwise: str,
    headers: Sequence[Path] = (),
    functions: Mapping[str, Signature] | None = None,
) -> ctypes.CDLL | None:
    """Compile a kernel if the cache lacks it, load it, and declare its functions.

    Parameters
    ----------
    source : Path
        One ``.c`` or ``.cpp`` file.
    flags : sequence of str
        Compiler flags; ``-march=native`` is safe, because the cache key contains the processor.
    name : str
        Of the kernel, for the file and the warning.
    otherwise : str
        What happens without the kernel, for the warning.
    headers : sequence of Path
        Headers of this project that the source includes; a change of one of them compiles the kernel again.
    functions : mapping of str to (argument types, result type)
        Signatures. ctypes would take an undeclared 64-bit argument for an int and cut it.

    Returns
    -------
    ctypes.CDLL or None
        None, and a warning, if the kernel cannot be compiled.
    """
    flags = ("-shared", "-fPIC", *flags)
    code = b"".join(path.read_bytes() for path in (source, *headers))
    key = hashlib.sha256(code + " ".join(flags).encode() + _processor().encode()).hexdigest()[:16]
    final = cache_folder() / "kernels" / f"{name}-{key}.so"
    try:
        if not _is_intact(final):
            _compile(source, flags, final)
        library = ctypes.CDLL(str(final))
    except (OSError, subprocess.CalledProcessError) as error:
        variable, compilers = COMPILERS[source.suffix]
        warnings.warn(
            f"{name}: no compiled CPU path ({type(error).__name__}); install a compiler ({', '.join(compilers)}), or "
            f"point {variable} at one and MRMFAST_CACHE at a writable folder. {otherwise} meanwhile",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    for function, (arguments, result) in (functions or {}).items():
        entry = getattr(library, function)
        entry.argtypes, entry.restype = list(arguments), result
    return library


def _compile(source: Path, flags: Sequence[str], final: Path) -> None:
    variable, compilers = COMPILERS[source.suffix]
    compiler = os.environ.get(variable) or next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise FileNotFoundError(compilers[0])
    final.parent.mkdir(parents=True, exist_ok=True)
    # Ranks may need the kernel at the same moment: the first one compiles it, the others wait. A partial file of a
    # killed compiler is overwritten, because its name holds no process id.
    with FileLock(final.with_name(f".{final.name}.lock")):
        if not _is_intact(final):
            partial = partial_path(final)
            subprocess.run([compiler, *flags, "-o", str(partial), str(source)], check=True, capture_output=True)
            with write_aside(_digest_path(final)) as file:
                file.write(_sha256(partial))
            commit_file(partial, final)


def _is_intact(final: Path) -> bool:
    """Return whether a kernel is in the cache as it was compiled: a flipped bit in machine code may change results."""
    digest = _digest_path(final)
    return final.exists() and digest.exists() and digest.read_bytes().decode(errors="replace") == _sha256(final)


def _digest_path(final: Path) -> Path:
    return final.with_suffix(".sha256")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def _processor() -> str:
    """Return what ``-march=native`` depends on; a cache folder may be shared by different machines."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else [platform.processor()]
    features = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return platform.machine() + "".join(sorted(features))
