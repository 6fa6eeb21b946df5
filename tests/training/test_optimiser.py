"""Groups and schedule."""

from itertools import pairwise

import pytest
import torch

from mrmfast.training.optimiser import OptimiserConfig, Schedule, build_optimiser
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
