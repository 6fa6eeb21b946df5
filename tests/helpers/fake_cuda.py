"""CUDA tensors without a GPU: fake ones, with devices, shapes and strides, and a backward pass that needs no engine.

PyTorch's C++ engine asks the driver about every CUDA tensor of a graph, and fails where there is none. Calling the
nodes of the graph from Python does not.
"""

import collections

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)


def mode():
    """A mode that refuses real tensors and mixed devices."""
    return FakeTensorMode(allow_non_fake_inputs=False)


def on_cuda(fake, tensor):
    """A fake CUDA tensor like a real CPU tensor."""
    with fake:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)


def move_module(fake, module):
    """What ``module.to("cuda")`` does: parameters and buffers, nothing else, so that a tensor kept aside is missed."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(on_cuda(fake, parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_cuda(fake, buffer)
    return module


def backward(loss):
    """Fill ``.grad`` of the leaves, node by node."""
    waiting, order, seen = collections.Counter(), [loss.grad_fn], {loss.grad_fn}
    for node in order:
        for following, _ in node.next_functions:
            if following is not None:
                waiting[following] += 1
                if following not in seen:
                    seen.add(following)
                    order.append(following)
    gradients = collections.defaultdict(dict)
    gradients[loss.grad_fn][0] = torch.ones_like(loss)
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        given = gradients.pop(node, {})
        results = [None] * len(node.next_functions)
        if given and type(node).__name__ == "AccumulateGrad":
            leaf, (gradient,) = node.variable, given.values()
            assert gradient.shape == leaf.shape
            assert gradient.device == leaf.device, f"gradient on {gradient.device} of a leaf on {leaf.device}"
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        elif given:
            slots = len(node._input_metadata)
            with torch.no_grad():
                results = (node if callable(node) else node.apply)(*(given.get(slot) for slot in range(slots)))
            results = results if isinstance(results, tuple) else (results,)
        for (following, slot), result in zip(node.next_functions, results, strict=False):
            if following is None:
                continue
            if result is not None:
                result = _as_expected(result, following._input_metadata[slot], node)
                known = gradients[following].get(slot)
                gradients[following][slot] = result if known is None else known + result
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)
    assert not any(waiting.values())


def _as_expected(gradient, expected, node):
    """Sum over what the forward pass has broadcast, as the engine does, and refuse what it refuses."""
    assert gradient.device == expected.device, f"{node.name()}: gradient on {gradient.device}, not {expected.device}"
    if gradient.shape != expected.shape:
        gradient = gradient.sum_to_size(expected.shape)
    return gradient.to(expected.dtype)


class Devices(TorchDispatchMode):
    """Records operators that return a tensor on the CPU."""

    def __init__(self):
        super().__init__()
        self.on_cpu, self.calls = [], collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls[str(function)] += 1
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self.on_cpu.append(str(function))
        return out
