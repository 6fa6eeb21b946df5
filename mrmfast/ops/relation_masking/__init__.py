"""Relation masking: the one dispatch point. Fused paths lie beside ``reference.py`` and are tested against it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mrmfast.ops.relation_masking import operators, reference
from mrmfast.ops.relation_masking.operators import Form
from mrmfast.ops.relation_masking.reference import masked_count

__all__ = ["masked_count", "relation_attention", "stacked_relation_attention"]


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
    if not (intact or masked):
        masked_count(ratio, k.shape[-2])
        return None, None
    if not has_kernel(q, k, v):
        return reference.relation_attention(q, k, v, ratio, intact=intact, masked=masked)
    form: Form = "both" if intact and masked else "intact" if intact else "masked"
    out = stacked_relation_attention([q, k, v], ratio, form)
    if form == "both":
        first, second = out.chunk(2)
        return first, second
    return (out, None) if intact else (None, out)


def stacked_relation_attention(projections: Sequence[Tensor], ratio: float, form: Form) -> Tensor:
    """Attend for both branches at once; their outputs, and their gradients, lie stacked in one tensor.

    Parameters
    ----------
    projections : sequence of Tensor
        Three tensors, q (S, H, N, d), k and v (S, H, M, d), or a single (3, S, H, N, d) that packs them: the gradient
        then is one tensor too, and no copy joins three. Any strides.
    ratio : float
        As in :func:`relation_attention`, whose rules hold here.
    form : {"intact", "masked", "both", "halves"}
        R V of each sample; R^M V of each; R V of each followed by R^M V of each; or R V of the first half of the
        samples followed by R^M V of the second half.

    Returns
    -------
    Tensor, (S, H, N, d), or (2 S, H, N, d) for both
        In memory (samples, N, H, d), so that heads join without a copy.
    """
    q, k, v = operators.queries_keys_values(projections)
    if not has_kernel(q, k, v):
        return reference.stacked_relation_attention(projections, ratio, form)
    count = masked_count(ratio, k.shape[-2])
    if q.dtype not in operators.DEVICES[q.device.type].dtypes:  # float16 on a CPU: rare
        return operators.forward([x.float() for x in projections], count, form)[0].to(q.dtype)
    out: Tensor = operators.forward(list(projections), count, form)[0]
    return out


def has_kernel(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Tell whether there is a fused path for such tensors."""
    device = operators.DEVICES.get(q.device.type)
    return device is not None and device.takes(q, k, v)
