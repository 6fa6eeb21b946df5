"""Every path of genome_unpack against the reference, bit for bit, and the kernel's resources on real targets."""

import itertools
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from mrmfast.ops import genome_unpack
from mrmfast.ops.genome_unpack import cpu, reference

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 31, 33, 1023, 1025]
PER_BYTE = {"genotype": 4, "binary": 8, "float": 1}


def case(kinds, rows, seed, float_dtype=torch.float32):
    """Random packed rows, a third of them absent; the padding bits of the last byte are random too."""
    generator = torch.Generator().manual_seed(seed)
    packed = []
    for kind, count in kinds:
        width = -(-count // PER_BYTE[kind])
        if kind == "float":
            part = torch.randn(rows, width, generator=generator)
            part[torch.rand(rows, width, generator=generator) < 0.2] = float("nan")
            packed.append(part.to(float_dtype))
        else:
            packed.append(torch.randint(0, 256, (rows, width), dtype=torch.uint8, generator=generator))
    present = torch.rand(rows, len(kinds), generator=generator) > 0.3
    fill = torch.randn(sum(count for _, count in kinds), generator=generator)
    return tuple(packed), present, tuple((f"m{i}", kind, count) for i, (kind, count) in enumerate(kinds)), fill


def cases():
    """All kinds alone at odd sizes, all orders of kinds together, one row and none."""
    for number, (kind, size) in enumerate(itertools.product(PER_BYTE, SIZES)):
        yield case([(kind, size)], 6, number)
    for number, order in enumerate(itertools.permutations(PER_BYTE)):
        yield case([(kind, 37 + 10 * i) for i, kind in enumerate(order)], 40, 100 + number, torch.float16)
    yield case([("genotype", 13), ("float", 5), ("binary", 21)], 1, 200)
    yield case([("genotype", 13), ("float", 5), ("binary", 21)], 0, 201)


def poisoned(size, *more, **options):
    """Stand in for torch.empty: an element that a path leaves unwritten becomes visible."""
    shape = (size, *more) if isinstance(size, int) else size
    dtype = options.get("dtype") or torch.get_default_dtype()
    return torch.full(shape, True if dtype == torch.bool else float("nan"), **{**options, "dtype": dtype})


def rounded(arguments):
    """Numbers that bfloat16 holds exactly: Triton's interpreter cuts the others off where a GPU rounds."""
    packed, present, kinds, fill = arguments
    packed = tuple(part.bfloat16().to(part.dtype) if part.is_floating_point() else part for part in packed)
    return packed, present, kinds, fill.bfloat16().float()


def check(path, monkeypatch, prepare=lambda arguments: arguments, **options):
    monkeypatch.setattr(torch, "empty", poisoned)
    for arguments in map(prepare, cases()):
        expected, seen = reference.unpack_genome(*arguments)
        got, observed = path(*arguments, **options)
        assert torch.equal(got, expected.to(got.dtype))
        assert observed.dtype == torch.bool
        assert torch.equal(observed, seen)
        strided = tuple(torch.cat([part, part], 1)[:, : part.shape[1]] for part in arguments[0])
        assert torch.equal(path(strided, *arguments[1:], **options)[0], got)


def test_the_compiled_path_is_the_reference(monkeypatch):
    assert cpu.available(), "the machine that runs the tests has a C compiler"
    check(cpu.unpack_genome, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dispatch_point_gives_the_dtype_asked_for(monkeypatch, dtype):
    check(genome_unpack.unpack_genome, monkeypatch, dtype=dtype)
    assert genome_unpack.unpack_genome(*case([("genotype", 5)], 2, 0), dtype=dtype)[0].dtype == dtype


def test_reference_against_numpy():
    arguments = case([("genotype", 33), ("float", 5), ("binary", 19)], 50, 1)
    (snps, scores, bits), present, _, fill = arguments
    codes = (snps.numpy()[:, :, None] >> np.array([0, 2, 4, 6])) & 3
    codes = codes.reshape(50, -1)[:, :33].astype(float)
    codes[codes == 3] = np.nan
    bits = np.unpackbits(bits.numpy(), axis=1, bitorder="little", count=19)
    values = np.concatenate([codes, scores.numpy(), bits], axis=1)
    here = np.repeat(present.numpy(), [33, 5, 19], axis=1) & ~np.isnan(values)
    got, observed = reference.unpack_genome(*arguments)
    assert np.array_equal(observed.numpy(), here)
    assert np.array_equal(got.numpy(), np.where(here, values, fill.numpy()).astype(np.float32))


def test_without_a_compiler_it_warns_and_is_right(monkeypatch, tmp_path):
    monkeypatch.setenv("MRMFAST_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    cpu.library.cache_clear()
    arguments = case([("genotype", 9), ("binary", 9)], 4, 7)
    with pytest.warns(RuntimeWarning, match="install a compiler"):
        got, _ = genome_unpack.unpack_genome(*arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        genome_unpack.unpack_genome(*arguments)
    assert torch.equal(got, reference.unpack_genome(*arguments)[0])
    cpu.library.cache_clear()


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["tests", "."]), **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


INTERPRETED = """
import pytest, torch
from mrmfast.ops.genome_unpack import triton
from tests.ops.test_genome_unpack import check, rounded
with pytest.MonkeyPatch.context() as patch:
    check(triton.unpack_genome, patch)
    check(triton.unpack_genome, patch, rounded, dtype=torch.bfloat16)
print("equal")
"""


def test_the_triton_kernel_is_the_reference_when_interpreted():
    pytest.importorskip("triton")
    # Interpretation is decided when the kernel is defined, hence a process of its own.
    done = run_python(INTERPRETED, TRITON_INTERPRET="1")
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


@pytest.mark.parametrize("capability", [80, 90])
def test_the_triton_kernel_compiles_without_spills(capability):
    pytest.importorskip("triton")
    from benchmarks.relation import cubin
    from mrmfast.ops.genome_unpack import triton as path

    if not (cubin.TOOLS / "cuobjdump").exists():
        pytest.skip("this Triton has no cuobjdump")
    for number, (kind, source) in enumerate([("genotype", None), ("binary", None), ("float", torch.float16)]):
        packed, present, kinds, fill = case([(kind, 1024)], 4, number, source or torch.float32)
        packed, present, fill = [part.to("meta") for part in packed], present.to("meta"), fill.to("meta")
        for dtype in (torch.float32, torch.bfloat16):
            with cubin.compiled_for(capability) as kernels:
                path.unpack_genome(packed, present, kinds, fill, dtype)
            (kernel,) = kernels
            assert dtype == torch.float32 or "cvt.rn.bf16" in kernel.asm["ptx"], "bfloat16 is not rounded to nearest"
            used = cubin.resources(kernel)
            print(capability, kind, source, dtype, used)
            assert used.spilled == 0
            assert used.registers <= 64
