"""The reference against the paper's equations written out entry by entry (docs/methods/mrm.md#relation-masking)."""

import math

import pytest
import torch

from mrmfast.ops.relation_masking import masked_count, relation_attention


def by_the_equations(q, k, v, ratio):
    """R, r_p, R^M of the paper in plain loops over rows, float64."""
    intact, masked = torch.zeros_like(q), torch.zeros_like(q)
    m = math.floor(ratio * k.shape[2] + 0.5)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for p in range(q.shape[2]):
                logits = torch.tensor(
                    [float(q[b, h, p] @ key) / math.sqrt(q.shape[-1]) for key in k[b, h]], dtype=torch.float64
                )
                relation = torch.exp(logits - logits.max())
                relation = relation / relation.sum()
                intact[b, h, p] = relation @ v[b, h]
                if m:
                    threshold = sorted(relation.tolist(), reverse=True)[m - 1]
                    relation = torch.where(relation < threshold, relation, torch.zeros_like(relation))
                masked[b, h, p] = relation @ v[b, h]
    return intact, masked


def draw(n, m, d=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = lambda count: (2, 3, count, d)  # noqa: E731
    return [torch.randn(shape(count), generator=generator, dtype=dtype) for count in (n, m, m)]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (17, 17), (5, 9), (9, 5), (50, 48)])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_reference_equals_the_equations(n, m, ratio):
    q, k, v = draw(n, m)
    for got, expected in zip(relation_attention(q, k, v, ratio), by_the_equations(q, k, v, ratio), strict=True):
        assert (got - expected).abs().max() <= 1e-12


def test_float32_is_close_to_float64():
    q, k, v = draw(50, 48)
    exact = relation_attention(q, k, v, 0.5)
    rough = relation_attention(q.float(), k.float(), v.float(), 0.5)
    for a, b in zip(rough, exact, strict=True):
        assert ((a.double() - b).norm() / b.norm()) <= 2e-6


def test_single_outputs_are_the_same_and_the_other_is_absent():
    q, k, v = draw(9, 9)
    intact, masked = relation_attention(q, k, v, 0.5)
    only_intact, none = relation_attention(q, k, v, 0.5, masked=False)
    assert torch.equal(only_intact, intact)
    assert none is None
    none, only_masked = relation_attention(q, k, v, 0.5, intact=False)
    assert torch.equal(only_masked, masked)
    assert none is None


def test_exactly_m_entries_of_every_row_are_removed():
    q, k, _ = draw(40, 33)
    identity = torch.eye(33, dtype=torch.float64).expand(2, 3, 33, 33)  # V = 1 makes the output R itself
    for ratio in (0.1, 0.5, 0.77, 1.0):
        intact, masked = relation_attention(q, k, identity, ratio)
        m = masked_count(ratio, 33)
        assert ((masked == 0).sum(-1) == m).all()
        assert (masked.sum(-1) <= (33 - m) / 33).all()
        kept = masked != 0
        assert torch.equal(masked[kept], intact[kept])
        assert not kept.any() or (intact.masked_fill(kept, 2).amin(-1) >= intact.masked_fill(~kept, -1).amax(-1)).all()


def test_ties_at_the_threshold_are_all_masked():
    q = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    k = torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=torch.float64).view(1, 1, 4, 1)
    _, masked = relation_attention(q, k, torch.eye(4, dtype=torch.float64).view(1, 1, 4, 4), 0.5)
    assert (masked[0, 0, 0] != 0).tolist() == [False, False, False, True]


def test_non_finite_logits():
    q, k, v = draw(4, 6)
    k[0, 0, 0, 0] = math.nan
    intact, masked = relation_attention(q, k, v, 0.5)
    assert intact[0, 0].isnan().all()
    assert masked[0, 0].isnan().all()
    assert intact[1].isfinite().all()
    assert masked[1].isfinite().all()
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([2.0, -math.inf, 1.0]).view(1, 1, 3, 1)
    _, masked = relation_attention(q, k, torch.eye(3).view(1, 1, 3, 3), 1 / 3)
    assert masked[0, 0, 0].tolist() == pytest.approx([0, 0, 1 / (1 + math.e)])


@pytest.mark.parametrize(("ratio", "n", "m"), [(0.75, 197, 148), (0.5, 48, 24), (0.5, 5, 3), (0.5, 1, 1), (0.0, 9, 0)])
def test_masked_count_rounds_halves_up(ratio, n, m):
    assert masked_count(ratio, n) == m


def test_ratio_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match="outside"):
        masked_count(1.2, 4)


def test_gradients_pass_gradcheck_away_from_ties():
    q, k, v = (x[:1, :1, :5, :3].clone().requires_grad_() for x in draw(5, 5, d=3))
    assert torch.autograd.gradcheck(lambda *qkv: relation_attention(*qkv, 0.5), (q, k, v))


def test_the_selection_carries_no_gradient_but_the_softmax_of_the_full_row_does():
    q, k, v = (x.requires_grad_() for x in draw(6, 6))
    _, masked = relation_attention(q, k, v, 0.5)
    masked.sum().backward()
    removed = relation_attention(q, k, torch.eye(6, dtype=torch.float64).expand(2, 3, 6, 6), 0.5)[1] == 0
    # A key that every row removed has no V gradient, yet its K gradient lives on in the softmax's denominator.
    unused = removed.all(2)
    assert (v.grad[unused] == 0).all()
    assert (k.grad.abs().sum(-1) > 0).all()
