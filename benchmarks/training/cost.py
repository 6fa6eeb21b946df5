"""What a config's model costs: parameters, arithmetic, memory, and the time of a step at a stated throughput.

Method: the model is built from the config, with UK Biobank's genome (7,854 SNPs, 481 scores, 18,574 genes in 48 tokens)
unless ``data.modalities=[]``; no dataset is needed. FLOPs are counted by torch's ``FlopCounterMode`` over forward and
backward on the meta device (two for a multiply-add; products only), after a gate against a hand count of the ViT.
Activation memory is what autograd keeps: storages seen by saved-tensor hooks in a forward pass on the CPU, in the run's
precision, for one and two samples, so that what does not grow with the batch is told apart. It is not the peak of a
device: temporaries, the block that is being recomputed and the allocator's slack come on top. Optimiser memory follows
DeepSpeed: bf16 weights and gradients (4 bytes) plus float32 master weights and two moments (12 bytes) a parameter; in
fp32 4, 4 and 8 bytes. ZeRO 1 divides the optimiser's states among ranks, 2 the gradients too, 3 the weights too.

    python -m benchmarks.training.cost --config configs/ukb_base.yaml [key=value ...] [--tflops 400] [--ranks 1]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.harness import Bench
from benchmarks.training.ukb_genome import ukb_genome
from mrmfast import config as configs
from mrmfast.errors import UserError
from mrmfast.objectives import build_objective
from mrmfast.training.memory import count_flops, example_inputs, kept_bytes, state_bytes, step_flops
from mrmfast.training.settings import TrainConfig


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Count parameters of the model's children, cross relations together."""
    counts: dict[str, int] = {}
    for name, child in model.named_children():
        part = "cross relations" if name.startswith("cross") else name.replace("_", " ")
        counts[part] = counts.get(part, 0) + sum(p.numel() for p in child.parameters())
    return counts


def vit_flops(width: int, depth: int, hidden: int, tokens: int, patch_values: int) -> int:
    """Count a ViT's forward pass by hand: patch embedding, then per block qkv, proj and MLP, Q K^T and R V."""
    per_token = 4 * width * width + 2 * width * hidden
    products = (tokens - 1) * patch_values * width + depth * (tokens * per_token + 2 * tokens * tokens * width)
    return 2 * products


def gate_counts(bench: Bench, config: TrainConfig) -> None:
    """Hold the counter against a hand count of the config's ViT."""
    depth: dict[str, Any] = {} if config.model.depth is None else {"depth": config.model.depth}
    vit: Any = timm.create_model(config.model.arch, num_classes=0, img_size=config.data.image_size, **depth)
    blocks = list(vit.blocks)
    hidden, tokens = blocks[0].mlp.fc1.out_features, vit.patch_embed.num_patches + 1
    by_hand = vit_flops(vit.embed_dim, len(blocks), hidden, tokens, 3 * vit.patch_embed.patch_size[0] ** 2)
    vit = vit.to("meta")
    image = torch.empty(1, 3, config.data.image_size, config.data.image_size, device="meta")
    forward = count_flops(lambda: vit.forward_features(image))
    bench.figure(f"{config.model.arch}, one image forward, counted by hand", by_hand / 1e9, "GFLOP")
    bench.gate("torch counts the ViT's forward pass as a hand count does", forward == by_hand)


def main() -> int:
    """Print the account of a config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--tflops", type=float, default=400.0, help="throughput that a device reaches, TFLOP/s")
    parser.add_argument("--ranks", type=int, default=1, help="devices that share batch and ZeRO states")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    try:
        config = configs.load(TrainConfig, arguments.config, arguments.overrides)
        config.micro_batch(arguments.ranks)
    except UserError as error:
        parser.error(str(error))
    bench = Bench(f"model: {arguments.config} {' '.join(arguments.overrides)}".rstrip(), arguments.json)
    gate_counts(bench, config)
    bf16 = config.engine.precision != "fp32" and config.engine.device != "cpu"
    account(bench, config, bf16, arguments.tflops, arguments.ranks)
    return bench.finish()


def account(bench: Bench, config: TrainConfig, bf16: bool, tflops: float, ranks: int) -> None:
    """Measure and record everything."""
    size, micro_batch = config.data.image_size, config.micro_batch(ranks)
    genome, cpu = None if config.data.modalities == [] else ukb_genome(), torch.device("cpu")
    model = build_objective(config.objective, config.model, size, genome)
    model.set_activation_checkpointing(config.engine.activation_checkpointing)
    for part, count in parameters_by_part(model).items():
        bench.figure(f"parameters: {part}", count / 1e6, "M")
    parameters = sum(p.numel() for p in model.parameters())
    bench.figure("parameters: all", parameters / 1e6, "M")

    if bf16:
        model.bfloat16()
    single, double = (kept_bytes(model, example_inputs(model, genome, samples, cpu)) for samples in (1, 2))
    activations = single + (double - single) * (micro_batch - 1)
    precision = "bf16" if bf16 else "fp32"
    bench.figure(f"activations kept, {precision}: a sample", (double - single) / 1e6, "MB")
    bench.figure(f"activations kept, {precision}: a micro-batch of {micro_batch}", activations / 1e9, "GB")
    for stage in range(4):
        parts = state_bytes(parameters, bf16, stage, ranks)
        chosen = " (this config's)" if stage == config.engine.zero_stage else ""
        together = " + ".join(f"{name} {value / 1e9:.2f}" for name, value in parts.items())
        bench.figure(f"ZeRO {stage}{chosen}, {ranks} ranks: {together}", sum(parts.values()) / 1e9, "GB a rank")

    forward, both = step_flops(model, example_inputs(model, genome, 1, cpu))
    bench.figure("arithmetic: a sample forward", forward / 1e9, "GFLOP")
    bench.figure("arithmetic: a sample forward and backward", both / 1e9, "GFLOP")
    step = both * config.batch_size
    bench.figure(f"arithmetic: a step of {config.batch_size}", step / 1e12, "TFLOP")
    bench.figure(f"expected step at {tflops:g} TFLOP/s on each of {ranks} ranks", step / ranks / tflops / 1e12, "s")


if __name__ == "__main__":
    sys.exit(main())
