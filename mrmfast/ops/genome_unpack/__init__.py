"""Packed genetics to float: the one dispatch point."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from mrmfast.ops.genome_unpack import cpu, reference

__all__ = ["unpack_genome"]


def unpack_genome(
    packed: Sequence[Tensor],
    present: Tensor,
    kinds: Sequence[tuple[str, str, int]],
    fill: Tensor,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Join packed modalities to the genome vector x_G, on the device that holds them, by the fastest path there.

    Parameters
    ----------
    packed, present, kinds, fill
        See :func:`mrmfast.ops.genome_unpack.reference.unpack_genome`.
    dtype : torch.dtype
        Of x_BF: float32 or bfloat16.

    Returns
    -------
    x_BF : Tensor, `dtype`, (B, F)
    observed_BF : Tensor, bool, (B, F)
    """
    if present.is_cuda and find_spec("triton"):
        from mrmfast.ops.genome_unpack import triton  # models import without Triton

        return triton.unpack_genome(packed, present, kinds, fill, dtype)
    path = cpu if present.device.type == "cpu" and cpu.available() else reference
    x_BF, observed_BF = path.unpack_genome(packed, present, kinds, fill)
    return x_BF.to(dtype), observed_BF
