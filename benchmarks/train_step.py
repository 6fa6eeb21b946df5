"""A step of MRM on the CPU against the literal equations, plain ViTs of the same size, and MAE.

Method: forward and backward of one micro-batch, without the optimiser, which is the same for all. Gate: loss and
gradients of the fast model equal those of ``benchmarks/training/literal_mrm.py`` on the same weights. Then all
contenders take turns in one process, and the medians are compared:

- ours: :class:`mrmfast.objectives.mrm.MRM` in training mode, from uint8 pixels and packed UK Biobank genetics;
- (a) literal: the equations one branch after the other, whole relations in memory, patches copied (no dropout);
- (b) plain: timm's ViT twice, and plain blocks in the place of the decoders, from normalised floats: no genome
  encoder, no cross relations, no embeddings and heads around the decoders, so the least that two branches could cost;
- (c) MAE: :class:`mrmfast.objectives.mae.MAE`, a quarter of the tokens through the encoder, all through a decoder of 8
  blocks.

Bars: ours at most 1.15 times (b), at most as long as (a). bf16 is measured on one small image: the backward products
of a CPU without bf16 instructions are a hundred times slower than float32's, in every contender.

``--host`` measures something else: the host time of a whole step, see :mod:`benchmarks.training.host_step`.

    python -m benchmarks.train_step [--host] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from benchmarks.harness import Bench
from benchmarks.harness.turns import in_turns
from benchmarks.training.host_step import host
from benchmarks.training.literal_mrm import literal_loss
from benchmarks.training.ukb_genome import ukb_batch, ukb_genome
from mrmfast.models.config import ModelConfig
from mrmfast.models.patch_embed import normalise
from mrmfast.objectives import build_objective
from mrmfast.objectives.mae import MAEConfig
from mrmfast.objectives.mrm import MRM, MRMConfig, ReconstructConfig

GENOME_TOKENS = 48


@dataclass(frozen=True)
class Case:
    """What is measured: a ViT, a precision, pixels a side, samples, rounds after one that is not counted."""

    name: str
    arch: str
    dtype: torch.dtype
    image_size: int
    samples: int
    rounds: int


CASES = (
    Case("ViT-S fp32", "vit_small_patch16_224", torch.float32, 224, 4, 4),
    Case("ViT-B fp32", "vit_base_patch16_224", torch.float32, 224, 4, 3),
    Case("ViT-S bf16", "vit_small_patch16_224", torch.bfloat16, 48, 1, 3),
    Case("ViT-B bf16", "vit_base_patch16_224", torch.bfloat16, 48, 1, 3),
)


class PlainPeer(nn.Module):
    """Twice a timm ViT, and plain blocks of the decoders' sizes on as many tokens."""

    def __init__(self, arch: str, sizes: ReconstructConfig, image_size: int, depth: int | None = None) -> None:
        super().__init__()
        shorter: dict[str, Any] = {} if depth is None else {"depth": depth}
        self.vit: Any = timm.create_model(arch, num_classes=0, img_size=image_size, **shorter)
        image, genome = sizes.image_decoder, sizes.genome_decoder
        self.image = nn.Sequential(*(Block(image.width, image.heads, qkv_bias=True) for _ in range(image.depth)))
        self.mix = Block(genome.width, 4, qkv_bias=True)
        self.genome = nn.Sequential(*(Block(genome.width, 4, qkv_bias=True) for _ in range(genome.layers)))

    def forward(self, image_BCHW: Tensor, image_tokens: Tensor, genome_tokens: Tensor) -> Tensor:
        """Add up something of every output, so that all gradients are computed."""
        outputs = [self.vit.forward_features(image_BCHW), self.vit.forward_features(image_BCHW)]
        outputs += [self.image(image_tokens), self.genome(self.mix(genome_tokens)[:, :GENOME_TOKENS])]
        return torch.stack([output.float().square().mean() for output in outputs]).sum()


def mrm_loss(model: MRM, image_BCHW: Tensor, packed: Any, present: Tensor, seed: int) -> tuple[Tensor, Any]:
    """Run the objective on one view."""
    loss, parts = model((image_BCHW,), packed, present, None, seed, 0, 1)
    return loss, parts


def gate(bench: Bench, case: Case, model: MRM, batch: Any) -> None:
    """Hold the fast model against the literal one: loss and the gradients of all parameters."""
    parameters = list(model.parameters())

    def measure(call: Callable[..., Any]) -> tuple[float, Tensor]:
        loss, _ = call(*batch, 0)
        gradients = torch.autograd.grad(loss, parameters)
        return float(loss.detach()), torch.cat([gradient.float().flatten() for gradient in gradients])

    def error(result: tuple[float, Tensor], other: tuple[float, Tensor]) -> tuple[float, float]:
        return abs(result[0] - other[0]) / abs(other[0]), float((result[1] - other[1]).norm() / other[1].norm())

    exact = measure(lambda *arguments: literal_loss(model, *arguments))
    if case.dtype == torch.float32:
        loss, gradient = error(measure(partial(mrm_loss, model)), exact)
        bench.figure(f"{case.name}: loss, relative difference to the literal one", loss, "")
        bench.figure(f"{case.name}: gradients, relative difference to the literal ones", gradient, "")
        bench.gate(
            f"{case.name}: loss within 1e-5 and gradients within 1e-3 of the literal ones",
            loss <= 1e-5 and gradient <= 1e-3,
        )
        return
    model.to(case.dtype)
    usual = error(measure(lambda *arguments: literal_loss(model, *arguments)), exact)
    ours = error(measure(partial(mrm_loss, model)), exact)
    bench.figure(f"{case.name}: gradients, ours to float32", ours[1], "")
    bench.figure(f"{case.name}: gradients, the literal ones' to float32", usual[1], "")
    close = ours[0] <= 0.02 and ours[1] <= 1.25 * usual[1]
    bench.gate(
        f"{case.name}: loss within 2 % of float32's, gradients as close to float32's as the literal ones'", close
    )


def measure(bench: Bench, case: Case) -> None:
    """Gate, then let the contenders take turns."""
    torch.manual_seed(0)
    sizes, config = ModelConfig(arch=case.arch), MRMConfig()
    model = build_objective(config, sizes, case.image_size, ukb_genome()).eval()
    assert isinstance(model, MRM)
    batch = ukb_batch(case.samples, case.image_size)
    gate(bench, case, model, batch)
    plain = PlainPeer(sizes.arch, config.reconstruct, case.image_size).to(case.dtype)
    mae = build_objective(MAEConfig(norm_pixels=False), sizes, case.image_size, None).to(case.dtype)
    pixels = normalise(batch[0]).to(case.dtype)
    tokens = 1 + model.encoder.grid**2 + GENOME_TOKENS
    image_tokens, genome_tokens = (
        torch.randn(case.samples, tokens, width, dtype=case.dtype, requires_grad=True)
        for width in (config.reconstruct.image_decoder.width, config.reconstruct.genome_decoder.width)
    )
    losses: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: mrm_loss(model.train(), *batch, 0)[0],
        "(a) literal": lambda: literal_loss(model.eval(), *batch, 0)[0],
        "(b) plain": lambda: plain(pixels, image_tokens, genome_tokens),
        "(c) MAE": lambda: mae((pixels,), (), batch[2], None, 0, 0, 1)[0],
    }
    modules = (model, plain, mae)

    def both_passes(loss: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: loss().backward()

    def without_gradients() -> None:
        for module in modules:
            module.zero_grad(set_to_none=True)

    contenders = {name: both_passes(loss) for name, loss in losses.items()}
    median = in_turns(contenders, case.rounds, before=without_gradients)
    for name, value in median.items():
        bench.figure(f"{case.name}: {name}, batch {case.samples}, {case.image_size} px", value, "s")
    bench.figure(f"{case.name}: ours over MAE", median["ours"] / median["(c) MAE"], "times")
    bench.bar(f"{case.name}: ours over plain ViTs and decoders", median["ours"] / median["(b) plain"], "<=", 1.15)
    bench.bar(f"{case.name}: ours over the literal equations", median["ours"] / median["(a) literal"], "<=", 1.0)


def main() -> int:
    """Run; exit status 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=[case.name for case in CASES], action="append", help="cases; default all")
    parser.add_argument("--host", action="store_true", help="host time of a step, our engine against a plain loop")
    arguments = parser.parse_args()
    if arguments.host:
        bench = Bench("train_step --host: host time of a training step with tiny tensors, on the CPU", arguments.json)
        host(bench)
        return bench.finish()
    bench = Bench("train_step: forward and backward of MRM against its peers, on the CPU", arguments.json)
    for case in CASES:
        if not arguments.only or case.name in arguments.only:
            measure(bench, case)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
