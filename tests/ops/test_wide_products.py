"""Products of bfloat16 on CPUs that lack the instructions."""

import pytest
import torch
from torch.nn import functional

from mrmfast.ops import wide_products as module
from mrmfast.ops.wide_products import WideProducts, wide_products

CASES = {
    "linear": (functional.linear, [(5, 7), (3, 7), (3,)]),
    "conv2d": (functional.conv2d, [(2, 3, 8, 8), (4, 3, 4, 4), (4,)]),
    "attention": (functional.scaled_dot_product_attention, [(2, 3, 5, 8)] * 3),
    "bmm": (torch.bmm, [(2, 5, 7), (2, 7, 3)]),
    "@": (lambda a, b: a @ b, [(5, 7), (7, 3)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_float32_rounded_once(name):
    function, shapes = CASES[name]
    generator = torch.Generator().manual_seed(0)
    narrow = [torch.randn(shape, generator=generator).bfloat16().requires_grad_() for shape in shapes]
    exact = [one.detach().float().requires_grad_() for one in narrow]
    with WideProducts():
        out = function(*narrow)
    expected = function(*exact)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.bfloat16())
    weight = torch.randn(out.shape, generator=generator).bfloat16()
    gradients = torch.autograd.grad(out, narrow, weight)
    wanted = torch.autograd.grad(expected, exact, weight.float())
    assert all(torch.equal(one, other.bfloat16()) for one, other in zip(gradients, wanted, strict=True))


def test_other_types_and_other_processors_are_left_alone(monkeypatch):
    with wide_products(torch.zeros(1)) as mode:
        assert mode is None
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with wide_products(torch.zeros(1, dtype=torch.bfloat16)) as mode:
        assert mode is None
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with wide_products(torch.zeros(1, dtype=torch.bfloat16)) as mode:
        assert isinstance(mode, module.WideProducts)
