"""The Triton kernels without a GPU: interpreted against the references, compiled for GPUs that would run them."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.relation import cubin, floor
from benchmarks.relation.shape import Shape

ROOT = Path(__file__).resolve().parents[2]
needs_cuobjdump = pytest.mark.skipif(not (cubin.TOOLS / "cuobjdump").exists(), reason="this Triton has no cuobjdump")


def run_python(*command, timeout=280):
    """Run Python from the root with Triton's interpreter, which is chosen when a kernel is defined."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(["tests", "."]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.timeout(900)  # a minute of one core, but the machine may be busy
def test_relation_masking_interpreted():
    options = ["-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=", "-W", "ignore::RuntimeWarning"]
    done = run_python("-m", "pytest", *options, "tests/ops/test_relation_triton.py", timeout=850)
    assert done.returncode == 0, done.stdout[-4000:]
    last = done.stdout.strip().splitlines()[-1]
    assert "passed" in last
    assert "skipped" not in last
    print(last)


@needs_cuobjdump
@pytest.mark.parametrize("card", floor.CARDS)
@pytest.mark.parametrize("shape", ["image self", "image over genome", "genome over image", "genome self"])
def test_relation_masking_compiles_without_spills_at_the_default_shapes(shape, card):
    limit = floor.CARDS[card]
    found = floor.compiled(floor.DEFAULTS[shape], limit.capability)
    assert [one.name for one in found] == ["forward_kernel", "query_gradient_kernel", "key_gradient_kernel"]
    for one in found:
        print(card, shape, one)
        assert one.spilled == 0, one
        assert one.registers <= 255, one
        assert one.shared <= limit.shared, one


@needs_cuobjdump
def test_more_heads_are_no_other_kernel():
    """ViT-L has 16 heads; what compiles for ViT-B is what it launches."""
    base, large = (floor.DEFAULTS[name] for name in ("image self", "image self, ViT-L"))
    assert floor.compiled(base, 80) == floor.compiled(large, 80)


@needs_cuobjdump
@pytest.mark.parametrize("shape", [(2, 3, 197, 197, 80), (2, 3, 65, 17, 128)])
def test_odd_shapes_fit_into_shared_memory(shape):
    for one in floor.compiled(Shape(*shape), 80):
        print(shape, one)
        assert one.shared <= floor.CARDS["A100"].shared, one


def test_forward_and_backward_multiply_scores_with_the_same_instruction():
    """The selection's bits: no kernel may compute Q K^T with wgmma while another does with mma."""
    for queries, keys in itertools.product((48, 197), repeat=2):
        path = floor.path
        rows = {path.row_tiles(queries, keys, 64, torch.bfloat16, backward=b).constants["ROWS"] for b in (False, True)}
        rows.add(path.key_tiles(queries, 64, torch.bfloat16).constants["ROWS"])
        assert max(rows) < 64, "wgmma takes tiles of 64 rows and more"


# Rows, warps, stages of the row kernels forward and backward; rows of the key kernel. Measured on an H200: docs/log.md.
MEASURED = {
    (197, 197): ((16, 4, 2), (32, 4, 2), 32),
    (197, 48): ((16, 1, 1), (32, 4, 2), 32),
    (48, 197): ((16, 4, 2), (16, 4, 2), 16),
}


@pytest.mark.parametrize("shape", MEASURED, ids=str)
def test_tiles_are_those_that_were_measured(shape):
    def of(backward):
        tiles = floor.path.row_tiles(*shape, 64, torch.bfloat16, backward=backward)
        return (tiles.constants["ROWS"], *tiles.options.values())

    key_rows = floor.path.key_tiles(shape[0], 64, torch.bfloat16).constants["ROWS"]
    assert (of(False), of(True), key_rows) == MEASURED[shape]


def test_bytes_and_operations_are_counted_as_the_method_page_counts_them():
    forward, backward = floor.work(floor.DEFAULTS["image self"])
    assert forward.floor == pytest.approx(0.39e9, rel=0.01)
    assert forward.needed == pytest.approx(46e9, rel=0.01)
    assert forward.floor < forward.design < 1.05 * forward.floor
    assert backward.issued > backward.needed > 2 * forward.needed


MISSING = """
import benchmarks.gpu.__main__ as gpu
from benchmarks.harness import Bench
def needs(bench, device, sizes):
    import no_such_package
def wrong(bench, device, sizes):
    bench.gate("two is three", False)
bench = Bench("a")
gpu.measure(bench, "cpu", gpu.TINY, {"one": gpu.Section(needs, 1), "two": gpu.Section(wrong, 1)})
print(bench.skipped)
bench = Bench("b")
bench.gate("right", True)
print("with tests", gpu.verdict(bench, 0))
bench.skip("tests", "pytest is not installed")
print("without tests", gpu.verdict(bench, 0))
"""


def test_missing_packages_are_skipped_by_name_and_wrong_results_are_not_timed():
    done = run_python("-c", MISSING)
    assert "'one': 'no_such_package is not installed'" in done.stdout, done.stderr
    assert "'two': 'wrong, so not measured'" in done.stdout
    assert "with tests 0" in done.stdout
    assert "without tests 1" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_the_check_names_the_reason_and_fails():
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "scripts/gpu_check.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("gpu_check: no CUDA GPU is visible")
    assert done.stdout == ""
