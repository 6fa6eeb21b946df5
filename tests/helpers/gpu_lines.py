"""Run the GPU paths of the operators interpreted and list the lines of ``ops/*/triton*.py`` that were not executed.

TRITON_INTERPRET=1 python tests/helpers/gpu_lines.py [name of a case to skip]
"""

import json
import sys
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "mrmfast/ops").glob("*/triton*.py"))


def cases():
    """Calls by name; together they execute everything."""
    import torch

    from benchmarks.relation import check  # which gives tensors of the CPU to the Triton kernels
    from mrmfast.ops.genome_unpack import triton as unpacking
    from mrmfast.ops.relation_masking import stacked_relation_attention
    from mrmfast.ops.relation_masking.triton import key_tiles, row_tiles
    from tests.helpers.triton_interpreter import correct_bfloat16

    correct_bfloat16()

    def relate(form, queries=17, keys=17, dtype=torch.float32):
        shapes = [(2, 1, n, 16) for n in (queries, keys, keys)]
        leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
        out = stacked_relation_attention(leaves, 0.5, form)
        torch.autograd.grad(out, leaves, torch.randn_like(out))

    def unpack(width=2):
        packed = [torch.zeros(2, 2 * width, dtype=torch.uint8)[:, ::2], torch.zeros(2, 3)]
        kinds = (("a", "genotype", 4 * width), ("b", "float", 3))
        unpacking.unpack_genome(packed, torch.ones(2, 2, dtype=torch.bool), kinds, torch.zeros(4 * width + 3))

    def tiles():
        for dtype in (torch.float32, torch.bfloat16):
            for backward in (False, True):
                row_tiles(197, 48, 64, dtype, backward=backward)
                row_tiles(197, 197, 64, dtype, backward=backward)
            key_tiles(197, 64, dtype)

    return {
        "halves": lambda: relate("halves"),
        "both": lambda: relate("both", dtype=torch.bfloat16),
        "no queries": lambda: relate("both", queries=0),
        "ties and infinities": lambda: check.mismatches(torch.tensor([[1.0, 1.0, float("inf"), -1.0]]), 2),
        "unpack": unpack,
        "tiles": tiles,
    }


def main():
    """Print the missing lines of each file as JSON."""
    watcher = coverage.Coverage(include=[str(path) for path in FILES], data_file=None)
    watcher.start()
    for name, call in cases().items():
        if name not in sys.argv[1:]:
            call()
    watcher.stop()
    print(json.dumps({str(path.relative_to(ROOT)): watcher.analysis2(str(path))[3] for path in FILES}))


if __name__ == "__main__":
    main()
