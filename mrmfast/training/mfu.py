"""Model FLOPs utilisation (MFU): the model's products per second as a share of the card's peak (PaLM, 2022).

Recomputed activations are not counted: they are a cost of the run, not work of the model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from mrmfast.objectives.base import TrainableModule
from mrmfast.training.memory import Inputs, step_flops

# Dense bf16 products with float32 sums, TFLOP/s, by a part of the name that the driver gives the card. From NVIDIA's
# data sheets of each card; where a sheet has the figure with sparsity only, half of it. Longer names come first.
PEAK_TFLOPS = (
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),  # SXM5: "NVIDIA H100 80GB HBM3"
    ("A100", 312.0),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("RTX 4090", 165.0),
    ("RTX A6000", 155.0),
    ("V100-PCIE", 112.0),  # fp16: these cards have no bf16 units
    ("V100", 125.0),  # fp16, SXM2
)


def peak_tflops(device_name: str) -> float | None:
    """Return the peak of a card by its name, or None where the table lacks it."""
    words = device_name.replace("-", " ").split()
    for name, peak in PEAK_TFLOPS:
        part = name.replace("-", " ").split()
        if any(words[start : start + len(part)] == part for start in range(len(words))):
            return peak
    return None


@dataclass(frozen=True)
class Utilisation:
    """MFU of a run.

    Attributes
    ----------
    flops : int
        Products of a sample's forward and backward pass.
    peak : float
        FLOP/s of all ranks together.
    """

    flops: int
    peak: float

    def of(self, samples_per_second: float) -> float:
        """Return the share of the peak."""
        return self.flops * samples_per_second / self.peak


def measure_utilisation(
    model: TrainableModule, inputs: Inputs, device: torch.device, *, bf16: bool, ranks: int, peak: float | None
) -> Utilisation | None:
    """Count the model's products, where the peak of the device is known.

    Parameters
    ----------
    model : TrainableModule
    inputs : tuple
        One sample.
    device : torch.device
    bf16 : bool
        The table holds bf16 peaks, so a run in fp32 has none without `peak`.
    ranks : int
    peak : float, optional
        ``engine.peak_tflops``: TFLOP/s of one rank, instead of the table's.
    """
    if peak is None and device.type == "cuda" and bf16:
        peak = peak_tflops(torch.cuda.get_device_name(device))
    if peak is None:
        return None
    counted = copy.deepcopy(model)
    counted.set_activation_checkpointing(False)
    flops = step_flops(counted, inputs)[1] // len(inputs[2])
    return Utilisation(flops, peak * 1e12 * ranks)
