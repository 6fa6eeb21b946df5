"""Relation masking as the paper's equations state it, in any dtype; float64 is the truth that fast paths must meet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def masked_count(ratio: float, n_keys: int) -> int:
    """Return m = round(ratio * N), halves away from zero: how many entries of a row are removed.

    Raises
    ------
    ValueError
        The ratio lies outside [0, 1].
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"masking ratio {ratio} lies outside [0, 1]")
    # Python's round() sends halves to the even neighbour, which would make m jump unevenly with N.
    return math.floor(ratio * n_keys + 0.5)


def relation_attention(
    q: Tensor, k: Tensor, v: Tensor, ratio: float, *, intact: bool = True, masked: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """Attend with the intact relation R and with the masked relation R^M.

    Parameters
    ----------
    q : Tensor, (B, H, N, d)
    k, v : Tensor, (B, H, M, d)
        M = N for a self relation; another modality's tokens for a cross relation.
    ratio : float
        Share tau of each row that is masked: its m = round(tau M) largest entries.
    intact, masked : bool
        Which outputs are wanted; the other is None.

    Returns
    -------
    intact : Tensor or None, (B, H, N, d)
        R V with R = softmax(Q K^T / sqrt(d)).
    masked : Tensor or None, (B, H, N, d)
        R^M V, R^M = R where R < r_p and 0 elsewhere, r_p the m-th largest entry of the row. Not renormalised.

    Notes
    -----
    Paper, section on relation masking (docs/methods/mrm.md#relation-masking). Selection happens on the logits in
    float32 or wider (monotone in R, so the same set; bf16 probabilities would tie). Ties at the threshold are all
    masked. The selection has no gradient; the kept entries have, through the softmax over the full row. A NaN logit
    makes its whole row NaN in both outputs, as in plain attention; +inf likewise; -inf logits have R = 0 and add
    nothing.
    """
    wide = q.dtype if q.dtype in (torch.float32, torch.float64) else torch.float32
    logits = (q.to(wide) @ k.to(wide).transpose(-2, -1)) / math.sqrt(q.shape[-1])
    relation = logits.softmax(-1)
    intact_out = (relation.to(v.dtype) @ v) if intact else None
    if not masked:
        return intact_out, None
    m = masked_count(ratio, k.shape[-2])
    if m:
        with torch.no_grad():
            threshold = logits.topk(m, dim=-1).values[..., -1:]
            removed = logits >= threshold
        # masked_fill keeps a NaN row NaN: comparisons with NaN are False, so nothing of it is removed.
        relation = relation.masked_fill(removed, 0.0)
    return intact_out, relation.to(v.dtype) @ v


def stacked_relation_attention(projections: Sequence[Tensor], ratio: float, form: str) -> Tensor:
    """Attend for both branches: see :func:`mrmfast.ops.relation_masking.stacked_relation_attention`."""
    q, k, v = projections[0].unbind() if len(projections) == 1 else projections
    if form == "halves":
        (q, q_masked), (k, k_masked), (v, v_masked) = (x.chunk(2) for x in (q, k, v))
        intact, _ = relation_attention(q, k, v, ratio, masked=False)
        _, masked = relation_attention(q_masked, k_masked, v_masked, ratio, intact=False)
    else:
        intact, masked = relation_attention(q, k, v, ratio, intact=form != "masked", masked=form != "intact")
    return torch.cat([out for out in (intact, masked) if out is not None])
