"""Relation masking: the one dispatch point. Fused paths lie beside ``reference.py`` and are tested against it."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from mrmfast.ops.relation_masking import cpu, reference
from mrmfast.ops.relation_masking.reference import masked_count

__all__ = ["masked_count", "relation_attention"]

HAS_TRITON = find_spec("triton") is not None
FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def relation_attention(
    q: Tensor, k: Tensor, v: Tensor, ratio: float, *, intact: bool = True, masked: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Attend with the intact relation R and with the masked relation R^M, by the fastest path for such tensors.

    Parameters
    ----------
    q : Tensor, (B, H, N, d)
        Any strides; so for k and v.
    k, v : Tensor, (B, H, M, d)
        M = N for a self relation; another modality's tokens for a cross relation.
    ratio : float
        Share tau of each row that is masked: its m = round(tau M) largest entries, halves rounded up.
    intact, masked : bool
        Which outputs are wanted; the other is None.

    Returns
    -------
    intact : Tensor or None, (B, H, N, d)
        R V with R = softmax(Q K^T / sqrt(d)).
    masked : Tensor or None, (B, H, N, d)
        R^M V, R^M = R where R < r_p and 0 elsewhere, r_p the m-th largest entry of the row. Not renormalised.

    Raises
    ------
    ValueError
        The ratio lies outside [0, 1].

    Notes
    -----
    Paper, section on relation masking. Every path keeps these rules:

    - Selection happens on logits in float32 (float64 inputs: float64), never on rounded probabilities, and is exact: m
      entries for distinct logits, every entry that ties with the m-th largest one besides (0.0 and -0.0 tie). It has no
      gradient.
    - tau = 0 masks nothing and gives the intact output; tau = 1 masks every entry and gives 0, but for NaN.
    - A NaN logit makes its whole row NaN in both outputs, and counts as the largest of its row. So do +inf (the softmax
      is no number) and a row of -inf alone, but for entries that are masked: these are 0 there too. -inf beside finite
      logits has R = 0.
    - Gradients flow to the kept entries and, through the softmax, to the whole row.

    float64, a device without a kernel, a sequence or head too long for one, and unlike shapes or dtypes take
    :func:`mrmfast.ops.relation_masking.reference.relation_attention`.
    """
    path = reference.relation_attention
    if q.device.type == "cpu" and cpu.supports(q, k, v):
        path = cpu.relation_attention
    elif q.is_cuda and HAS_TRITON:
        import mrmfast.ops.relation_masking.triton as triton  # models import without Triton

        alike = q.dtype == k.dtype == v.dtype and q.shape[:2] == k.shape[:2] and k.shape == v.shape
        fits = k.shape[-2] <= triton.LARGEST_KEYS and q.shape[-1] <= triton.LARGEST_WIDTH
        if q.dtype in FUSED_DTYPES and alike and fits:
            path = triton.relation_attention
    return path(q, k, v, ratio, intact=intact, masked=masked)
