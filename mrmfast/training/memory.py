"""What a model costs: bytes of activations and states, products of a forward and a backward pass.

Activation memory is what autograd keeps: storages seen by saved-tensor hooks in a forward pass. It is not the peak of
a device: temporaries, the block that is being recomputed and the allocator's slack come on top.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mrmfast.batch import GenomeSpec

# (image_BCHW, packed, present) of mrmfast.batch.Batch.
Inputs = tuple[Tensor, tuple[Tensor, ...], Tensor]


def example_inputs(spec: GenomeSpec | None, image_size: int, samples: int, device: torch.device) -> Inputs:
    """Make inputs of the right shapes: random pixels, genetics of zeros that everyone has."""
    image = torch.randint(0, 256, (samples, 3, image_size, image_size), dtype=torch.uint8, device=device)
    per_byte = {"genotype": 4, "binary": 8}
    packed = []
    for _, kind, features in spec.kinds if spec is not None else ():
        if kind in per_byte:
            width = (features + per_byte[kind] - 1) // per_byte[kind]
            packed.append(torch.zeros(samples, width, dtype=torch.uint8, device=device))
        else:
            packed.append(torch.zeros(samples, features, device=device))
    return image, tuple(packed), torch.ones(samples, len(packed), dtype=torch.bool, device=device)


def count_flops(call: Callable[[], Any]) -> int:
    """Count the products of a call (two for a multiply-add), forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def step_flops(model: Any, inputs: Inputs) -> tuple[int, int]:
    """Count the forward pass of `inputs`, and forward and backward together, on the meta device."""
    image, packed, present = inputs
    unpacked = model.unpack(packed, present)
    model = copy.deepcopy(model).to("meta")
    genome = None if unpacked is None else (unpacked[0].to("meta"), unpacked[1].to("meta"))
    chosen = torch.zeros(len(image), dtype=torch.long, device="meta")

    def forward() -> Tensor:
        return torch.stack(list(model.losses(image.to("meta"), genome, chosen).values())).sum()

    return count_flops(forward), count_flops(lambda: forward().backward())


def _recomputed_modules(model: Any) -> list[nn.Module]:
    """Return modules whose input is the input of something that is recomputed."""
    first: list[Any] = list(model.image.blocks[: model.image.relation_blocks])
    others: list[nn.Module] = [*model.image.blocks[model.image.relation_blocks :], *model.image_decoder.blocks]
    if model.genome is not None:
        first += model.genome.blocks
        others += model.genome.layers[:1]
    return [*(block.norm1 for block in first), *others]


def kept_bytes(model: Any, inputs: Inputs) -> int:
    """Return the bytes of storages that autograd keeps after a forward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # holds on to what it has seen, or an address could come up twice

    def see(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    # What is recomputed keeps its inputs outside autograd's sight.
    watched = _recomputed_modules(model) if model.checkpointing else []
    handles = [module.register_forward_pre_hook(lambda _, inputs: (see(inputs[0]), None)[1]) for module in watched]
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        model(*inputs, 0)
    for handle in handles:
        handle.remove()
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)


def state_bytes(parameters: int, bf16: bool, stage: int, ranks: int) -> dict[str, float]:
    """Return a rank's bytes of weights, gradients and optimiser states (ZeRO: Rajbhandari et al. 2020, figure 1).

    Without ZeRO there is a float32 buffer of gradients as well; see :class:`mrmfast.training.flat_adamw.FlatAdamW`.
    """
    weight, gradient, states = (2, 2, 12) if bf16 else (4, 4, 8)
    return {
        "weights": parameters * weight / (ranks if stage == 3 else 1),
        "gradients": parameters * gradient / (ranks if stage >= 2 else 1),
        "optimiser states": parameters * states / (ranks if stage >= 1 else 1),
        **({"gradient buffer": parameters * 4.0} if stage == 0 else {}),
    }
