"""Packed genetics to float: the one dispatch point."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from mrmfast.batch import ModalitySpec
from mrmfast.ops.genome_unpack import cpu, operators, reference

__all__ = ["unpack_genome"]

HAS_TRITON = find_spec("triton") is not None


def unpack_genome(
    packed: Sequence[Tensor],
    present: Tensor,
    modalities: Sequence[ModalitySpec],
    fill: Tensor,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Join packed modalities to the genome vector x_G, on the device that holds them, by the fastest path there.

    Parameters
    ----------
    packed, present, modalities, fill
        See :func:`mrmfast.ops.genome_unpack.reference.unpack_genome`.
    dtype : torch.dtype
        Of x_BF: float32 or bfloat16.

    Returns
    -------
    x_BF : Tensor, `dtype`, (B, F)
    observed_BF : Tensor, bool, (B, F)
    """
    fused = HAS_TRITON if present.is_cuda else present.device.type == "cpu" and cpu.available()
    if not fused:
        x_BF, observed_BF = reference.unpack_genome(packed, present, modalities, fill)
        return x_BF.to(dtype), observed_BF
    per_number = [operators.PER_NUMBER[encoding] for _, encoding, _ in modalities]
    out: tuple[Tensor, Tensor] = operators.unpack(
        list(packed), present, fill, per_number, [count for _, _, count in modalities], dtype
    )
    return out
