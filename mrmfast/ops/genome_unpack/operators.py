"""The operator ``mrmfast::unpack_genome``: one node of a graph for every device, with known shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrmfast.batch import ModalitySpec

# Values that one stored number holds: four genotypes or eight bits a byte, one score.
PER_NUMBER = {"genotype": 4, "binary": 8, "float": 1}
ENCODINGS = {count: encoding for encoding, count in PER_NUMBER.items()}


@torch.library.custom_op("mrmfast::unpack_genome", mutates_args=(), device_types="cpu")
def unpack(
    packed: Sequence[Tensor],
    present: Tensor,
    fill: Tensor,
    per_number: Sequence[int],
    features: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Unpack on the device that holds the tensors.

    Parameters
    ----------
    packed, present, fill
        See :func:`mrmfast.ops.genome_unpack.reference.unpack_genome`.
    per_number, features : sequence of int
        Of each modality: values per stored number, which identify its encoding (:data:`PER_NUMBER`), and features.
    dtype : torch.dtype
        Of the values.

    Returns
    -------
    x_BF : Tensor, (B, F)
    observed_BF : Tensor, bool, (B, F)
    """
    from mrmfast.ops.genome_unpack import cpu

    x_BF, observed_BF = cpu.unpack_genome(packed, present, _modalities(per_number, features), fill)
    return x_BF.to(dtype), observed_BF


@unpack.register_kernel("cuda")
def _(
    packed: Sequence[Tensor],
    present: Tensor,
    fill: Tensor,
    per_number: Sequence[int],
    features: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    from mrmfast.ops.genome_unpack import triton  # models import without Triton

    return triton.unpack_genome(packed, present, _modalities(per_number, features), fill, dtype)


@unpack.register_fake
def _(
    packed: Sequence[Tensor],
    present: Tensor,
    fill: Tensor,
    per_number: Sequence[int],
    features: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    shape = (present.shape[0], sum(features))
    tensors = [*packed, present, fill]
    torch._check(len({tensor.device for tensor in tensors}) == 1, lambda: "unpack_genome: tensors on several devices")
    return present.new_empty(shape, dtype=dtype), present.new_empty(shape, dtype=torch.bool)


def _modalities(per_number: Sequence[int], features: Sequence[int]) -> list[ModalitySpec]:
    return [ModalitySpec("", ENCODINGS[values], count) for values, count in zip(per_number, features, strict=True)]
