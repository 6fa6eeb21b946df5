"""AdamW on contiguous buffers against torch's AdamW with torch's clipping."""

import copy

import pytest
import torch
from torch import nn

from mrmfast.training.flat_adamw import FlatAdamW

CLIP, OPTIONS = 0.5, {"lr": 1e-2, "betas": (0.8, 0.9)}


def groups(model):
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def give_gradients(parameters, step):
    """The same gradients for both sides; large ones, so that they are clipped, and small ones in turn."""
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        drawn = torch.randn(parameter.shape, generator=generator) * (10 if step % 2 else 0.01)
        parameter.grad = drawn.bfloat16().to(parameter.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ten_steps_equal_clipping_and_adamw_in_float32(dtype):
    ours, theirs = model().to(dtype), model().to(dtype).float()
    flat = FlatAdamW(groups(ours), clip=CLIP, **OPTIONS)
    plain = torch.optim.AdamW(groups(theirs), **OPTIONS)
    for step in range(10):
        give_gradients(ours.parameters(), step)
        give_gradients(theirs.parameters(), step)
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), CLIP)
        plain.step()
        flat.step()
        flat.zero_grad()
        assert float(flat.norm) == pytest.approx(float(norm), rel=1e-6)
        assert all(p.grad is None for p in ours.parameters())
    masters = flat.masters()
    for parameter, exact in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(masters[parameter], exact.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(parameter, masters[parameter].to(dtype))


def test_a_step_whose_gradients_are_not_finite_changes_nothing():
    trained = model().bfloat16()
    flat = FlatAdamW(groups(trained), clip=CLIP, **OPTIONS)
    give_gradients(trained.parameters(), 1)
    flat.step()
    before = copy.deepcopy(flat.state_dict())
    give_gradients(trained.parameters(), 2)
    trained[0].weight.grad[0, 0] = float("inf")
    flat.step()
    assert not torch.isfinite(flat.norm)
    after = flat.state_dict()
    assert all(torch.equal(after["masters"][n], before["masters"][n]) for n in before["masters"])
    for number, state in before["state"].items():
        assert all(torch.equal(after["state"][number][name], value) for name, value in state.items()), number


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_continues_alike(dtype):
    first = model().to(dtype)
    flat = FlatAdamW(groups(first), clip=CLIP, **OPTIONS)
    for step in range(3):
        give_gradients(first.parameters(), step)
        flat.step()
    second = copy.deepcopy(first)
    other = FlatAdamW(groups(second), clip=CLIP, **OPTIONS)
    other.load_state_dict(copy.deepcopy(flat.state_dict()))
    for trained, optimiser in ((first, flat), (second, other)):
        give_gradients(trained.parameters(), 9)
        optimiser.step()
    for one, two in zip(flat.masters().values(), other.masters().values(), strict=True):
        assert torch.equal(one, two)


def test_the_state_of_a_plain_adamw_is_taken_and_of_other_groups_refused():
    theirs, ours = model(), model()
    plain = torch.optim.AdamW(groups(theirs), **OPTIONS)
    flat = FlatAdamW(groups(ours), clip=0, **OPTIONS)
    for step in range(2):
        give_gradients(theirs.parameters(), step)
        plain.step()
    ours.load_state_dict(theirs.state_dict())
    flat.load_state_dict(plain.state_dict())
    for trained, optimiser in ((theirs, plain), (ours, flat)):
        give_gradients(trained.parameters(), 5)
        optimiser.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    with pytest.raises(KeyError, match="groups"):
        flat.load_state_dict(torch.optim.AdamW(ours.parameters()).state_dict())
