"""Groups and schedule."""

from itertools import pairwise

import pytest
import torch

from mrmfast.config import build
from mrmfast.errors import UserError
from mrmfast.training.optimiser import OptimiserConfig, Schedule, build_optimiser
from mrmfast.training.schedules import SCHEDULES
from mrmfast.training.settings import TrainConfig
from tests.helpers.objectives import build_mrm


def test_decay_is_for_the_matrices_of_the_vit_side_only():
    model = build_mrm()
    optimiser = build_optimiser(model, OptimiserConfig(weight_decay=0.05), torch.device("cpu"))
    with_decay = {id(p) for p in optimiser.param_groups[0]["params"]}
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.05, 0.0]
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        snn = name.startswith(("genome.", "genome_decoder."))
        vector = parameter.ndim < 2 or name.endswith(("cls_token", "pos_embed"))
        assert (id(parameter) in with_decay) == (not snn and not vector), name


def test_the_rate_rises_linearly_then_falls_as_a_cosine():
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = Schedule(optimiser, OptimiserConfig(lr=1e-3, warmup=0.1, final=0.01), 100)
    rates = []
    for step in range(100):
        schedule.step_update(step)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-4)  # the first step does something
    assert rates[10] == pytest.approx(1e-3)
    assert all(later > before for before, later in pairwise(rates[:11]))
    assert all(later < before for before, later in pairwise(rates[10:]))
    assert rates[55] == pytest.approx((1e-3 + 1e-5) / 2, rel=0.01)
    assert rates[-1] == pytest.approx(1e-5, rel=0.05)
    schedule.step_update(7)
    assert optimiser.param_groups[0]["lr"] == rates[7]  # a function of the step alone


class Late(torch.nn.Module):
    """Two layers, of which the second is trained from the middle of the run on."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def no_weight_decay(self):
        return ()

    def decays(self, name, parameter):
        return True

    def trained_from(self, name):
        return 0.5 if name.startswith("last") else 0.0


@pytest.mark.parametrize("flat_over", [None, 1])
def test_a_group_that_waits_is_as_if_it_had_not_been_there(flat_over):
    """Neither weight decay nor the count of steps touches it: its first step is Adam's first."""
    torch.manual_seed(0)
    model, config = Late(), OptimiserConfig(lr=0.1, weight_decay=0.5, clip=0, schedule="mae", warmup=0, final=1)
    optimiser = build_optimiser(model, config, torch.device("cpu"), flat_over=flat_over)
    schedule, before = Schedule(optimiser, config, 4), model.last.weight.clone()
    for step in range(3):
        first = model.first.weight.clone()
        schedule.step_update(step)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimiser.step()
        assert not torch.equal(model.first.weight, first)
        assert torch.equal(model.last.weight, before) == (step < 2)
    assert torch.allclose(model.last.weight, before * (1 - 0.1 * 0.5) - 0.1)


def test_each_tensor_is_clipped_on_its_own():
    model, config = Late(), OptimiserConfig(clip=1.0, clip_by="tensor")
    optimiser = build_optimiser(model, config, torch.device("cpu"), flat_over=1)
    sizes = dict(zip(model.parameters(), (0.1, 0.5, 2.0, 40.0), strict=True))
    for parameter, size in sizes.items():
        parameter.grad = torch.full_like(parameter, size / parameter.numel() ** 0.5)
    optimiser.step()
    clipped = [view.norm().item() for views in optimiser._gradient_views for view in views]
    assert clipped == pytest.approx([0.1, 0.5, 1.0, 1.0], rel=1e-5)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"optimiser": {"clip_by": "tensor"}}, "optimiser.clip_by=tensor: engine.zero_stage=1"),
        (
            {"objective": {"name": "mocov3"}, "engine": {"zero_stage": 3}},
            "mocov3 needs whole parameters; take at most 2",
        ),
        (
            {"objective": {"name": "attmask"}, "engine": {"zero_stage": 3}},
            "attmask needs whole parameters; take at most 2",
        ),
    ],
)
def test_a_stage_that_takes_tensors_apart_is_refused(tree, message):
    with pytest.raises(UserError, match=message):
        build(TrainConfig, tree, "")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 5), (1.0, 5), (0.05, 1), (0.4, 5)])
def test_every_schedule_is_defined_at_every_step(name, warmup, steps):
    rates = [SCHEDULES[name](step, steps, warmup, 0.1) for step in range(steps + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
