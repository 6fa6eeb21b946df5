"""GPU path: one launch per modality reads each packed byte and writes each output once, as float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mrmfast.batch import ModalitySpec
from mrmfast.ops.genome_unpack.operators import PER_NUMBER

# Packed values per program: a multiple of 128 outputs, so that a warp stores whole cache lines.
BLOCK = {"genotype": 256, "binary": 128, "float": 512}
WARPS = 4


@triton.jit
def unpack_kernel(  # type: ignore[no-untyped-def]  # Triton reads the signature
    packed_ptr,
    present_ptr,
    fill_ptr,
    x_ptr,
    observed_ptr,
    width,
    count,
    features,
    start,
    packed_stride,
    present_stride,
    PER_BYTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Unpack BLOCK packed values of one participant.

    Pointers: packed (B, width), present (B,) of this modality, fill (F,), x and observed (B, F); `start` is the
    modality's first feature and `count` how many it has. PER_BYTE 4 is genotypes, 8 bits, 1 numbers.
    """
    row = tl.program_id(0).to(tl.int64)
    byte = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(packed_ptr + row * packed_stride + byte, mask=byte < width, other=0)
    has_modality = tl.load(present_ptr + row * present_stride).to(tl.int1)
    if PER_BYTE == 1:
        feature = byte
        number = value.to(tl.float32)
        known = (number == number) & has_modality
    else:
        offset = tl.arange(0, PER_BYTE)
        feature = byte[:, None] * PER_BYTE + offset[None, :]
        code = (value.to(tl.int32)[:, None] >> (offset * (8 // PER_BYTE))[None, :]) & (3 if PER_BYTE == 4 else 1)
        number = code.to(tl.float32)
        known = (code != 3) & has_modality
    inside = feature < count
    filled = tl.load(fill_ptr + start + feature, mask=inside, other=0.0)
    output = row * features + start + feature
    tl.store(x_ptr + output, tl.where(known, number, filled).to(x_ptr.dtype.element_ty), mask=inside)
    tl.store(observed_ptr + output, known.to(tl.int8), mask=inside)


def unpack_genome(
    packed: Sequence[Tensor],
    present: Tensor,
    modalities: Sequence[ModalitySpec],
    fill: Tensor,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Join packed modalities to x_G: as :func:`mrmfast.ops.genome_unpack.reference.unpack_genome`, on one GPU."""
    rows, features = present.shape[0], sum(count for _, _, count in modalities)
    x_BF = torch.empty(rows, features, dtype=dtype, device=present.device)
    observed_BF = torch.empty(rows, features, dtype=torch.bool, device=present.device)
    fill = fill.float().contiguous()
    start = 0
    for number, (part, (_, encoding, count)) in enumerate(zip(packed, modalities, strict=True)):
        if part.stride(1) != 1:
            part = part.contiguous()
        if rows and count:
            unpack_kernel[(rows, triton.cdiv(part.shape[1], BLOCK[encoding]))](
                part,
                present[:, number].view(torch.int8),
                fill,
                x_BF,
                observed_BF.view(torch.int8),
                part.shape[1],
                count,
                features,
                start,
                part.stride(0),
                present.stride(0),
                PER_BYTE=PER_NUMBER[encoding],
                BLOCK=BLOCK[encoding],
                num_warps=WARPS,
            )
        start += count
    return x_BF, observed_BF
