"""What surrounds the kernels on a GPU, for benchmarks.gpu: unpacking genomes, DALI, a whole training step."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.sizes import Sizes, seconds
from benchmarks.harness import Bench
from mrmfast.ops.relation_masking import reference


def unpacking(bench: Bench, device: str, sizes: Sizes) -> None:
    """Check the unpacking of genomes bit for bit, then time it against the plain PyTorch reference."""
    from mrmfast.ops.genome_unpack import reference as plain
    from mrmfast.ops.genome_unpack import triton as fused

    snps, scores = sizes.features * 3 // 10, sizes.features // 50
    kinds = (("snps", "genotype", snps), ("pgs", "float", scores), ("burden", "binary", sizes.features - snps - scores))
    rows, widths = sizes.participants, (-(-snps // 4), scores, -(-kinds[2][2] // 8))
    packed = [torch.randint(0, 256, (rows, width), dtype=torch.uint8, device=device) for width in widths]
    packed[1] = torch.randn(rows, scores, device=device)
    present = torch.rand(rows, 3, device=device) > 0.2
    fill = torch.randn(sizes.features, device=device)
    arguments = (packed, present, kinds, fill)
    got, expected = fused.unpack_genome(*arguments), plain.unpack_genome(*arguments)
    same = all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    bench.gate("unpacking is the reference, bit for bit", same)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: fused.unpack_genome(*arguments),
        "plain": lambda: plain.unpack_genome(*arguments),
    }
    took = seconds(calls, device, sizes.rounds)
    moved = sum(part.numel() * part.element_size() for part in packed) + rows * sizes.features * 5
    bench.figure(f"unpacking {rows} x {sizes.features}: ours", took["ours"] * 1e3, "ms")
    bench.figure("unpacking: bytes / time", moved / took["ours"] / 1e9, "GB/s")
    bench.bar("unpacking: ours / plain PyTorch", took["ours"] / took["plain"], "<=", 1)


def pictures(bench: Bench, device: str, sizes: Sizes) -> None:
    """Decode and warp JPEGs in DALI on the device and compare them with its own CPU path."""
    import numpy as np
    import simplejpeg

    from mrmfast.data.images.dali import DALIImages
    from mrmfast.meters import Meters

    side, batch = sizes.pixels, min(sizes.images, 64)
    generator = np.random.default_rng(0)
    smooth = generator.integers(0, 255, (batch, 4, 4, 3), dtype=np.uint8).repeat(side // 4, 1).repeat(side // 4, 2)
    jpegs = [np.frombuffer(simplejpeg.encode_jpeg(np.ascontiguousarray(one)), dtype=np.uint8) for one in smooth]
    matrices = np.tile(np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32), (batch, 1, 1))

    def open_on(name: str) -> DALIImages:
        options: dict[str, Any] = {"batch": batch, "stored_size": side, "size": side, "threads": 2, "depth": 2}
        source: Any = lambda: (jpegs, matrices, None)  # noqa: E731
        return DALIImages(source, device=torch.device(name), meters=Meters(), **options)

    here, cpu = open_on(device), open_on("cpu")
    got, expected = here.run()[0].cpu().float(), cpu.run()[0].float()
    off = float((got - expected).abs().mean())
    bench.gate("DALI on the device is within 3 of 255 of DALI on the CPU, on average", off <= 3)
    took = statistics.median(seconds({"run": here.run}, "cpu", 20 * sizes.rounds).values())
    bench.figure(f"DALI, {batch} of {side} x {side}", batch / took, "images/s")
    here.close()
    cpu.close()


def training_step(bench: Bench, device: str, sizes: Sizes) -> None:
    """Time MRM's forward, backward and update in bf16, with the dispatched relation and with the eager one.

    Weights are bf16, as DeepSpeed makes them for training; its float32 copies and its ZeRO are left out, on both sides.
    """
    from mrmfast.batch import GenomeSpec
    from mrmfast.models import relation as models_relation
    from mrmfast.objectives import OBJECTIVES
    from mrmfast.objectives.mrm import ModelConfig, MRMConfig

    tokens = min(48, sizes.features // 4)
    groups = [len(part) for part in torch.arange(sizes.features).tensor_split(tokens)]
    kinds = (("snps", "genotype", sizes.features),)
    names = tuple(f"snps/{number}" for number in range(tokens))
    spec = GenomeSpec(kinds, tuple(groups), names, torch.ones(sizes.features))
    torch.manual_seed(0)
    model = OBJECTIVES["mrm"](ModelConfig(arch=sizes.arch), MRMConfig(), sizes.pixels, spec).to(device).bfloat16()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    shape = (sizes.images, 3, sizes.pixels, sizes.pixels)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    packed = (torch.randint(0, 256, (sizes.images, -(-sizes.features // 4)), dtype=torch.uint8, device=device),)
    present = torch.ones(sizes.images, 1, dtype=torch.bool, device=device)

    def loss() -> Tensor:
        torch.manual_seed(0)  # the same dropout on both sides
        value: Tensor = model(image, packed, present, 0)[0]
        return value

    def step() -> None:
        loss().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def with_eager(call: Callable[[], Any]) -> Any:
        with patch.object(models_relation, "stacked_relation_attention", reference.stacked_relation_attention):
            return call()

    def eager() -> None:
        with_eager(step)

    ours, wanted = float(loss().detach()), float(with_eager(loss).detach())
    apart = abs(ours - wanted) / abs(wanted)
    bench.gate(f"the training step's loss is the eager relation's within 1 % ({apart:.1e})", apart <= 0.01)
    took = seconds({"ours": step, "eager relation": eager}, device, sizes.rounds)
    for name, value in took.items():
        bench.figure(f"{sizes.arch}, batch {sizes.images}: step, {name}", value * 1e3, "ms")
    bench.figure(f"{sizes.arch}: training", sizes.images / took["ours"], "images/s")
    bench.bar("training step: ours / eager relation", took["ours"] / took["eager relation"], "<=", 1)
