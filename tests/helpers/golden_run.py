"""Twenty training steps of MRM whose losses no processor can move: what a refactor must reproduce.

Pixels, genetics and weights come from an integer hash, so that no decoder, random number kernel or vector unit has a
part in them; dropout and the matched pairs come from torch's Mersenne Twister, which is integer arithmetic. The model
runs in float64 through the reference paths: another order of summation moves a loss by about 1e-15, and twenty steps of
AdamW make less than 1e-9 of that. float32 has no such golden values. It is compared with float64 at the same weights,
step by step, so that rounding does not grow from step to step (see ``test_golden.py``).

Write the golden values again, after a change that is meant to change them, from the repository's root:

    PYTHONPATH=. python tests/helpers/golden_run.py --write
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mrmfast.batch import GenomeSpec
from mrmfast.models.config import ModelConfig
from mrmfast.models.decoders import GenomeDecoderConfig, ImageDecoderConfig
from mrmfast.objectives import build_objective
from mrmfast.objectives.mrm import MRMConfig, ReconstructConfig
from mrmfast.ops.genome_unpack import cpu as unpack_kernel
from mrmfast.training.optimiser import OptimiserConfig, Schedule, build_optimiser
from mrmfast.training.step import step_seed

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "mrm_losses.json"
STEPS, SAMPLES, IMAGE_SIZE = 20, 8, 64
PARTS = ("image", "genome", "self", "cross")
MODEL = ModelConfig(arch="vit_tiny_patch16_224", depth=4, genome_layers=3)
OBJECTIVE = MRMConfig(
    reconstruct=ReconstructConfig(
        image_decoder=ImageDecoderConfig(width=96, depth=2, heads=3), genome_decoder=GenomeDecoderConfig(width=64)
    )
)
KINDS = (("snps", "genotype", 203), ("pgs", "float", 13), ("burden", "binary", 90))
GROUPS = (60, 80, 63, 6, 7, 50, 40)
# Weights are drawn by name. After a renaming, the start of the new name and of the old one go here.
FORMER_NAMES = {"encoder.": "image."}


def hashed(name: str, count: int) -> np.ndarray:
    """Return `count` integers of 64 bits, a function of the name alone (SplitMix64, Steele et al. 2014)."""
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x += np.uint64(zlib.crc32(name.encode())) << np.uint64(20)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return float64 numbers in [-1, 1), exact multiples of 2^-23, so that float32 holds them too."""
    numbers = (hashed(name, math.prod(shape)) >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0
    return torch.from_numpy(numbers).view(shape)


def weight_name(name: str) -> str:
    """Return the name under which a parameter's weights are drawn."""
    new = next((start for start in FORMER_NAMES if name.startswith(start)), None)
    return name if new is None else FORMER_NAMES[new] + name.removeprefix(new)


@torch.no_grad()
def set_weights(model: torch.nn.Module) -> None:
    """Draw all weights: matrices with variance 1 / fan-in, vectors near their usual 0 or 1.

    Constants are drawn too: the sines of the decoder's positions differ in the last digit between processors.
    """
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(uniform(weight_name(name), tuple(buffer.shape)))
    for name, parameter in model.named_parameters():
        values = uniform(weight_name(name), tuple(parameter.shape))
        if parameter.ndim >= 2:
            values *= math.sqrt(3 / math.prod(parameter.shape[1:]))
        else:
            values = 0.1 * values + ("norm" in name and name.endswith("weight"))
        parameter.copy_(values)


def batch(step: int) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Return pixels, packed genetics and who has which, of one step."""
    coarse = (hashed(f"pixels {step}", SAMPLES * 3 * 64) >> np.uint64(56)).astype(np.uint8).reshape(SAMPLES, 3, 8, 8)
    pixels = torch.from_numpy(coarse.repeat(IMAGE_SIZE // 8, 2).repeat(IMAGE_SIZE // 8, 3))
    snps, scores, genes = (features for _, _, features in KINDS)

    def octets(name: str, width: int) -> Tensor:
        numbers = hashed(f"{name} {step}", SAMPLES * width) >> np.uint64(56)
        return torch.from_numpy(numbers.astype(np.uint8)).view(SAMPLES, width)

    packed = (
        octets("snps", math.ceil(snps / 4)),
        2 * uniform(f"pgs {step}", (SAMPLES, scores)).float(),
        octets("burden", math.ceil(genes / 8)),
    )
    return pixels, packed, octets("present", len(KINDS)) > 50


def build() -> torch.nn.Module:
    """Return MRM in float32 with hashed weights, in training mode."""
    names = tuple(f"group {number}" for number in range(len(GROUPS)))
    fill = uniform("fill", (sum(GROUPS),)).float()
    model = build_objective(OBJECTIVE, MODEL, IMAGE_SIZE, GenomeSpec(KINDS, GROUPS, names, fill))
    set_weights(model)
    return model.train()


class Float64(TorchFunctionMode):
    """Ask for float64 wherever the code asks for float32, but for dropout's draws, which must be the same in both."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.rand:
            return func(*args, **kwargs)
        if func is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return func(*args, **kwargs)


def forward_backward(model: torch.nn.Module, step: int) -> dict[str, float]:
    """Compute loss, its parts and the norm of the whole gradient, which is left in the parameters."""
    seed = step_seed(0, step, 0, 0)
    model.zero_grad(set_to_none=True)
    pixels, packed, present = batch(step)
    loss, parts = model((pixels,), packed, present, None, seed, step, STEPS)
    loss.backward()
    # In float64 for either precision: the sum of a million squares is not what is tested here.
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    assert loss.dtype == next(model.parameters()).dtype
    return {"loss": float(loss.detach()), **{f"loss/{name}": float(parts[name]) for name in PARTS}, "grad_norm": norm}


def run(steps: int = STEPS) -> dict[str, dict[str, list[float]]]:
    """Train in float64; at the weights of every step, compute the losses in float32 by the fast paths besides.

    Returns
    -------
    dict
        ``float64`` and ``float32``: a list of `steps` values for ``loss``, each part, and ``grad_norm``.
    """
    exact, fast = build().double(), build()
    config = OptimiserConfig()
    optimiser = build_optimiser(exact, config, torch.device("cpu"))
    schedule = Schedule(optimiser, config, STEPS)
    history: dict[str, dict[str, list[float]]] = {"float64": {}, "float32": {}}
    for step in range(steps):
        with torch.no_grad():
            for rounded, parameter in zip(fast.parameters(), exact.parameters(), strict=True):
                rounded.copy_(parameter)
        with Float64(), patch.object(unpack_kernel, "available", return_value=False):
            values = {"float64": forward_backward(exact, step)}
        values["float32"] = forward_backward(fast, step)
        for precision, entry in values.items():
            for name, value in entry.items():
                history[precision].setdefault(name, []).append(value)
        torch.nn.utils.clip_grad_norm_(exact.parameters(), config.clip)
        schedule.step_update(step)
        optimiser.step()
    return history


def main() -> None:
    """Print what a run gives, as JSON, or write the golden values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {GOLDEN.name}")
    parser.add_argument("--without-onednn", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the same schedule (default: %(default)s)")
    options = parser.parse_args()
    if options.write and options.steps != STEPS:
        parser.error("--write records all steps")
    torch.backends.mkldnn.enabled = not options.without_onednn
    history = run(options.steps)
    if options.write:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(history["float64"], indent=1) + "\n")
        print(f"wrote {GOLDEN}")
    else:
        json.dump(history, sys.stdout)


if __name__ == "__main__":
    main()
