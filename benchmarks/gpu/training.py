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
from mrmfast.arithmetic import ceil_div
from mrmfast.batch import ModalitySpec
from mrmfast.ops.relation_masking import reference


def unpacking(bench: Bench, device: str, sizes: Sizes) -> None:
    """Check the unpacking of genomes bit for bit, then time it against the plain PyTorch reference."""
    from mrmfast.ops.genome_unpack import reference as plain
    from mrmfast.ops.genome_unpack import triton as fused

    snps, scores = sizes.features * 3 // 10, sizes.features // 50
    genes = sizes.features - snps - scores
    modalities = (
        ModalitySpec("snps", "genotype", snps),
        ModalitySpec("pgs", "float", scores),
        ModalitySpec("burden", "binary", genes),
    )
    rows, widths = sizes.participants, (ceil_div(snps, 4), scores, (genes + 7) // 8)
    packed = [torch.randint(0, 256, (rows, width), dtype=torch.uint8, device=device) for width in widths]
    packed[1] = torch.randn(rows, scores, device=device)
    present = torch.rand(rows, 3, device=device) > 0.2
    fill = torch.randn(sizes.features, device=device)
    arguments = (packed, present, modalities, fill)
    got, expected = fused.unpack_genome(*arguments), plain.unpack_genome(*arguments)
    same = all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
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


def decoding(bench: Bench, device: str, sizes: Sizes) -> None:
    """Decode and warp JPEGs in DALI on the device and compare them with its own CPU path."""
    import numpy as np
    import simplejpeg

    from mrmfast.batch import ViewSpec
    from mrmfast.data.images.backend import DecodeRequest, DecodeSpec
    from mrmfast.data.images.dali import DALIImages
    from mrmfast.meters import Meters

    side, batch = sizes.pixels, min(sizes.images, 64)
    generator = np.random.default_rng(0)
    smooth = generator.integers(0, 255, (batch, 4, 4, 3), dtype=np.uint8).repeat(side // 4, 1).repeat(side // 4, 2)
    jpegs = [np.frombuffer(simplejpeg.encode_jpeg(np.ascontiguousarray(image)), dtype=np.uint8) for image in smooth]
    matrices = np.tile(np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32), (batch, 1, 1))

    def open_on(name: str) -> DALIImages:
        spec = DecodeSpec((ViewSpec(side),), batch, side, torch.device(name), threads=2, depth=2)
        return DALIImages(lambda: DecodeRequest(jpegs, (matrices,)), spec, Meters())

    on_device, on_cpu = open_on(device), open_on("cpu")
    got, expected = on_device.run().views[0].cpu().float(), on_cpu.run().views[0].float()
    off = float((got - expected).abs().mean())
    bench.gate("DALI on the device is within 3 of 255 of DALI on the CPU, on average", off <= 3)
    took = statistics.median(seconds({"run": on_device.run}, "cpu", 20 * sizes.rounds).values())
    bench.figure(f"DALI, {batch} of {side} x {side}", batch / took, "images/s")
    on_device.close()
    on_cpu.close()


def training_step(bench: Bench, device: str, sizes: Sizes) -> None:
    """Time forward, backward and update in bf16 at each micro-batch: ours, compiled, eager relation, plain ViTs, MAE.

    Weights are bf16, as DeepSpeed makes them for training; all sides run without DeepSpeed's float32 copies and ZeRO.
    """
    for samples in sizes.micro_batches:
        _step_at(bench, device, sizes, samples)
        if device == "cuda":
            torch.cuda.empty_cache()


def _step_at(bench: Bench, device: str, sizes: Sizes, samples: int) -> None:
    from benchmarks.train_step import GENOME_TOKENS, PlainPeer
    from mrmfast.models.config import ModelConfig
    from mrmfast.models.patch_embed import normalise
    from mrmfast.objectives import build_objective
    from mrmfast.objectives.mae import MAEConfig
    from mrmfast.objectives.mrm import relation as relation_module

    model, batch = _model_and_batch(device, sizes, samples)
    decoders = sizes.decoders
    plain = PlainPeer(sizes.arch, decoders, sizes.pixels, sizes.depth).to(device).bfloat16()
    mae = build_objective(
        MAEConfig(norm_pixels=False, decoder=decoders.image_decoder),
        ModelConfig(arch=sizes.arch, depth=sizes.depth),
        sizes.pixels,
        None,
    )
    mae.to(device).bfloat16()
    pixels = normalise(batch[0]).bfloat16()
    tokens = 1 + (sizes.pixels // 16) ** 2 + GENOME_TOKENS
    image_tokens, genome_tokens = (
        torch.randn(samples, tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        for width in (decoders.image_decoder.width, decoders.genome_decoder.width)
    )

    def loss() -> Tensor:
        image, packed, present = batch
        value: Tensor = model((image,), packed, present, None, 0, 0, 1)[0]  # one seed: the same dropout for all
        return value

    def eager(call: Callable[[], Any]) -> Any:
        with patch.object(relation_module, "stacked_relation_attention", reference.stacked_relation_attention):
            return call()

    ours, expected = float(loss().detach()), float(eager(loss).detach())
    apart = abs(ours - expected) / abs(expected)
    bench.gate(f"loss of {samples} samples is the eager relation's within 1 % ({apart:.1e})", apart <= 0.01)
    calls = {
        "ours": _update(model, loss, device),
        "plain ViTs and decoders": _update(plain, lambda: plain(pixels, image_tokens, genome_tokens), device),
        "one ViT": _update(plain.vit, lambda: plain.vit.forward_features(pixels).float().square().mean(), device),
        "MAE": _update(mae, lambda: mae((pixels,), (), batch[2], None, 0, 0, 1)[0], device),
    }
    if samples == min(sizes.micro_batches):
        step = calls["ours"]
        calls["eager relation"] = lambda: eager(step)
    took = seconds(calls, device, sizes.rounds)
    took["compiled"] = _compiled(bench, model, loss, device, sizes)
    for name, value in took.items():
        bench.figure(f"step, micro-batch {samples}: {name}", value * 1e3, "ms")
    bench.figure(f"step, micro-batch {samples}: training", samples / took["ours"], "images/s")
    share = took["ours"] / took["plain ViTs and decoders"]
    bench.figure(f"step, micro-batch {samples}: ours / plain ViTs and decoders", share, "times")
    if "eager relation" in took and device == "cuda":
        bench.bar("training step: ours / eager relation", took["ours"] / took["eager relation"], "<=", 1)


def _compiled(bench: Bench, model: Any, loss: Callable[[], Tensor], device: str, sizes: Sizes) -> float:
    """Time the step with the training graph compiled as one; the CPU traces it without generating code."""
    expected = float(loss().detach())  # of the weights as they are now
    compiled = torch.compile(model.losses, fullgraph=True, backend="inductor" if device == "cuda" else "eager")
    with patch.object(model, "losses", compiled):
        apart = abs(float(loss().detach()) - expected) / abs(expected)
        bench.gate(f"the compiled loss is the eager one within 1 % ({apart:.1e})", apart <= 0.01)
        return seconds({"compiled": _update(model, loss, device)}, device, sizes.rounds)["compiled"]


def _update(module: Any, loss: Callable[[], Tensor], device: str) -> Callable[[], None]:
    """Return a whole step: forward, backward, AdamW."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=device == "cuda")

    def step() -> None:
        loss().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _model_and_batch(device: str, sizes: Sizes, samples: int) -> tuple[Any, tuple[Any, ...]]:
    """Return MRM in bf16 and pixels, packed SNPs and who has them."""
    from mrmfast.batch import GenomeSpec
    from mrmfast.models.config import ModelConfig
    from mrmfast.objectives import build_objective
    from mrmfast.objectives.mrm import MRMConfig

    tokens = min(48, sizes.features // 4)
    groups = tuple(len(part) for part in torch.arange(sizes.features).tensor_split(tokens))
    names = tuple(f"snps/{number}" for number in range(tokens))
    spec = GenomeSpec((ModalitySpec("snps", "genotype", sizes.features),), groups, names, torch.ones(sizes.features))
    torch.manual_seed(0)
    model: Any = build_objective(
        MRMConfig(reconstruct=sizes.decoders), ModelConfig(arch=sizes.arch, depth=sizes.depth), sizes.pixels, spec
    )
    shape = (samples, 3, sizes.pixels, sizes.pixels)
    image = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    packed = (torch.randint(0, 256, (samples, ceil_div(sizes.features, 4)), dtype=torch.uint8, device=device),)
    present = torch.ones(samples, 1, dtype=torch.bool, device=device)
    return model.to(device).bfloat16(), (image, packed, present)
