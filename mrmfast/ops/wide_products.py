"""bfloat16 on CPUs without bfloat16 instructions: products are computed in float32 and rounded once.

On these CPUs the backward products of oneDNN and torch run at 1.5 GFLOP/s under all settings, a hundredth of float32's.
In float32, every product of two bfloat16 numbers is exact: the result equals that of hardware that accumulates in
float32.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PRODUCTS = frozenset(
    {
        functional.linear,
        functional.conv2d,
        functional.scaled_dot_product_attention,
        torch.addmm,
        torch.baddbmm,
        torch.bmm,
        torch.einsum,
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
    }
)


def wide_products(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which products of bfloat16 tensors are computed in float32, backward passes included.

    Parameters
    ----------
    tensor : Tensor
        For example a weight. The context has an effect only for bfloat16 on a CPU without the instructions.
    """
    needed = tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu"
    # AVX-512 is the least for which oneDNN has bfloat16 kernels.
    slow = needed and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    return WideProducts() if slow else nullcontext()


class WideProducts(TorchFunctionMode):
    """See :func:`wide_products`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Widen the operands of a product, and round its result."""
        if func not in PRODUCTS or not any(_is_narrow(value) for value in args):
            return func(*args, **(kwargs or {}))
        wide = [value.float() if _is_narrow(value) else value for value in args]
        named = {name: value.float() if _is_narrow(value) else value for name, value in (kwargs or {}).items()}
        return func(*wide, **named).bfloat16()


def _is_narrow(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16
