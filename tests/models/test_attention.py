"""Packed attention is timm's to the bit, and a training step copies no more than it must."""

import collections

import torch
from timm.layers import Attention
from torch.utils._python_dispatch import TorchDispatchMode

from mrmfast.models.attention import PackedAttention
from tests.helpers.objectives import batch, build_mrm, loss_of


class Copies(TorchDispatchMode):
    """Counts operators that only move numbers, and those of them that move a packed (B, N, 3, H, d)."""

    def __init__(self):
        super().__init__()
        self.calls, self.packed = collections.Counter(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten.cat.default, torch.ops.aten.clone.default, torch.ops.aten.stack.default):
            self.calls[function.overloadpacket.__name__] += 1
            self.packed += out.ndim == 5 and 3 in out.shape[:3]
        return out


def test_packed_attention_is_timms_to_the_bit():
    torch.manual_seed(0)
    plain = Attention(48, num_heads=3, qkv_bias=True)
    packed = PackedAttention(plain)
    assert list(packed.state_dict()) == list(plain.state_dict())
    x, upstream = torch.randn(2, 17, 48, requires_grad=True), torch.randn(2, 17, 48)
    mask = torch.randn(17, 17)
    for options in ({}, {"attn_mask": mask}, {"is_causal": True}):
        results = []
        for module in (plain, packed):
            out = module(x, **options)
            results.append([out, *torch.autograd.grad(out, [x, *module.parameters()], upstream)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_gradient_of_a_packed_projection_is_stacked_once():
    x = torch.randn(2, 17, 48, requires_grad=True)
    moved = []
    for module in (Attention(48, num_heads=3), PackedAttention(Attention(48, num_heads=3))):
        with Copies() as copies:
            module(x).sum().backward()
        moved.append(copies.packed)
    assert moved == [2, 1]


def test_a_step_concatenates_neither_branches_nor_projections():
    """Class token, decoders' inputs, gradients of positions and halves, pooled vectors; 45 with one a relation."""
    model = build_mrm(depth=4, genome_layers=1)
    with Copies() as copies:
        loss_of(model, *batch())[0].backward()
    assert copies.calls["cat"] <= 16
    plain_blocks = 2 + 1 + 1  # of the encoder after two relation blocks, of either decoder
    assert copies.packed == plain_blocks
