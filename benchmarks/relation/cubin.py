"""Compile Triton kernels for a GPU that is not there, from the calls that would launch them; read the cubin."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from mrmfast.arithmetic import ceil_div

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Resources:
    """What one kernel takes.

    Attributes
    ----------
    name : str
    warps : int
    registers : int
        Per thread.
    spilled : int
        Bytes of stack and local memory per thread: 0 where nothing is spilled.
    shared : int
        Bytes of shared memory per block.
    """

    name: str
    warps: int
    registers: int
    spilled: int
    shared: int

    @property
    def blocks(self) -> int:
        """How many blocks a multiprocessor of compute capability 8.0 or 9.0 holds by registers and warps."""
        # 65,536 registers, given out to warps by 256; 64 warps.
        per_warp = ceil_div(self.registers * 32, 256) * 256
        return min(65536 // (per_warp * self.warps), 64 // self.warps)


class _Absent:
    """A driver of a GPU that is not there: it names the target and nothing else."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiled_for(capability: int) -> Iterator[list[Any]]:
    """Compile what the body launches, for compute capability `capability` (80, 90), and run nothing.

    The tensors may be on the ``meta`` device; their dtypes, strides and alignment specialise the kernels as on a GPU.

    Yields
    ------
    list
        Compiled kernels (``asm``, ``metadata``), in the order of the launches.
    """
    kernels: list[Any] = []
    launch, active = JITFunction.run, driver._active

    def compile_only(self: Any, *arguments: Any, **options: Any) -> Any:
        kernels.append(launch(self, *arguments, **{**options, "warmup": True}))
        return kernels[-1]

    driver.set_active(_Absent(capability))
    JITFunction.run = compile_only
    try:
        yield kernels
    finally:
        JITFunction.run = launch
        driver._active = active


def resources(kernel: Any) -> Resources:
    """Read a compiled kernel's registers, spills and shared memory from its cubin, with Triton's ``cuobjdump``."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert match, usage
    registers, stack, _, local = map(int, match.groups())
    meta = kernel.metadata
    return Resources(meta.name, meta.num_warps, registers, stack + local, meta.shared)
