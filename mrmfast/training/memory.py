"""What a model costs: bytes of activations and states, products of a forward and a backward pass.

Activation memory is what autograd keeps: storages seen by saved-tensor hooks in a forward pass. It is not the peak of
a device: temporaries, the block that is being recomputed and the allocator's slack come on top.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mrmfast.batch import GenomeSpec
from mrmfast.models.activation_checkpointing import observe_recomputed
from mrmfast.objectives.base import TrainableModule
from mrmfast.objectives.collectives import alone

# What TrainableModule.forward takes.
Inputs = tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor, None, int, int, int]


def example_inputs(model: TrainableModule, spec: GenomeSpec | None, samples: int, device: torch.device) -> Inputs:
    """Make inputs of the right shapes: random views, genetics of zeros that everyone has.

    Parameters
    ----------
    model : TrainableModule
        Says which views it takes.
    spec : GenomeSpec or None
    samples : int
    device : torch.device
    """
    sizes = [view.size or model.encoder.image_size for view in model.views(model.config)]
    options: dict[str, Any] = {"dtype": torch.uint8, "device": device}
    views = tuple(torch.randint(0, 256, (samples, 3, size, size), **options) for size in sizes)
    per_byte = {"genotype": 4, "binary": 8}
    packed = []
    for _, encoding, features in spec.modalities if spec is not None else ():
        if encoding in per_byte:
            width = (features + per_byte[encoding] - 1) // per_byte[encoding]
            packed.append(torch.zeros(samples, width, **options))
        else:
            packed.append(torch.zeros(samples, features, device=device))
    present = torch.ones(samples, len(packed), dtype=torch.bool, device=device)
    return views, tuple(packed), present, None, 0, 0, 1


def count_flops(call: Callable[[], Any]) -> int:
    """Count the products of a call (two for a multiply-add), forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def step_flops(model: TrainableModule, inputs: Inputs) -> tuple[int, int]:
    """Count the forward pass of `inputs`, and forward and backward together, on the meta device."""
    views, packed, present, *rest = inputs
    model = copy.deepcopy(model).to("meta")
    moved: Any = (tuple(x.to("meta") for x in views), tuple(x.to("meta") for x in packed), present.to("meta"), *rest)

    def forward() -> Tensor:
        loss: Tensor = model(*moved)[0]
        return loss

    with alone():
        return count_flops(forward), count_flops(lambda: forward().backward())


def kept_bytes(model: TrainableModule, inputs: Inputs) -> int:
    """Return the bytes of storages that autograd keeps after a forward pass, without those of parameters."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # holds on to what it has seen, or an address could come up twice

    def see(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    # What is recomputed keeps its inputs outside autograd's sight.
    with alone(), observe_recomputed(see), torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        model(*inputs)
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
