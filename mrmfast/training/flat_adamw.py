"""AdamW on contiguous float32 buffers, for ranks that hold the whole optimiser state.

A model of 363 parameter tensors costs a loop over tensors 363 small calls per operation. Here each parameter group is
one buffer, so clipping and the update are a few calls for any number of tensors. DeepSpeed's ZeRO flattens groups
in the same way, but its loops over parameters serve partitions that a single rank does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mrmfast.errors import UserError
from mrmfast.training.adamw import AdamW

ALIGNMENT = 64  # elements; every parameter starts at a multiple of 256 bytes, as the allocator would place it


def _padded(count: int) -> int:
    return (count + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


class FlatAdamW(AdamW):
    """:class:`AdamW` with clipping, on one float32 buffer per parameter group.

    Parameters in float32 become views of the buffer. Parameters in bf16 are rounded copies of it: the update happens in
    float32 (Micikevicius et al. 2018). A step whose gradients are not finite changes nothing. No call waits for the
    device.

    Parameters
    ----------
    groups : list of dict
        As for :class:`torch.optim.AdamW`; the parameters of all groups have one dtype: float32, bf16, or float64 (then
        the buffers are float64 too).
    clip : float
        Largest norm of the gradients; 0 turns clipping off.
    clip_each : bool
        Clip the gradient of each parameter on its own, not all together.
    ranks : int
        Gradients are averaged over so many ranks, in float32, one message per buffer.
    **options
        ``lr``, ``betas``, ``eps`` of :class:`torch.optim.AdamW`.

    Attributes
    ----------
    norm : Tensor or None
        Norm of the gradients of the last step, before clipping; a float32 scalar on the parameters' device.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, clip: float, clip_each: bool = False, ranks: int = 1, **options: Any
    ) -> None:
        self.clip, self._clip_each, self._ranks = clip, clip_each, ranks
        self.norm: Tensor | None = None
        self._parameters: list[list[nn.Parameter]] = [list(group["params"]) for group in groups if group["params"]]
        buffers = [_flatten(parameters) for parameters in self._parameters]
        self._masters = [_views(buffer, like) for buffer, like in zip(buffers, self._parameters, strict=True)]
        self._gradients = [torch.zeros_like(buffer) for buffer in buffers]
        self._gradient_views = [
            _views(flat, like) for flat, like in zip(self._gradients, self._parameters, strict=True)
        ]
        self._whole = [parameter for parameters in self._parameters for parameter in parameters]
        self._mixed = self._whole[0].dtype == torch.bfloat16
        if not self._mixed:
            for parameter, master in zip(self._whole, _chain(self._masters), strict=True):
                parameter.data = master
        flat_groups = [
            {**group, "params": [nn.Parameter(buffer)]}
            for group, buffer in zip((group for group in groups if group["params"]), buffers, strict=True)
        ]
        super().__init__(flat_groups, fused=True, **options)
        for group, gradient in zip(self.param_groups, self._gradients, strict=True):
            group["params"][0].grad = gradient

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Average the gradients, clip them, update the parameters. Missing gradients count as 0."""
        assert closure is None
        for flat, views, parameters in zip(self._gradients, self._gradient_views, self._parameters, strict=True):
            given = [(view, p.grad) for view, p in zip(views, parameters, strict=True) if p.grad is not None]
            if len(given) < len(parameters):
                flat.zero_()
            if given:
                torch._foreach_copy_([view for view, _ in given], [gradient for _, gradient in given])
            if self._ranks > 1:
                torch.distributed.all_reduce(flat)
                flat.div_(self._ranks)
        self.norm = nn.utils.get_total_norm(self._gradients)
        if self.clip > 0 and self._clip_each:
            _clip_each(_chain(self._gradient_views), self.clip)
        elif self.clip > 0:
            nn.utils.clip_grads_with_norm_([group["params"][0] for group in self.param_groups], self.clip, self.norm)
        # What GradScaler sets: the fused kernel reads it on the device and leaves the parameters alone where it is 1.
        self.found_inf = (~self.norm.isfinite()).float()
        super().step()
        if self._mixed:
            torch._foreach_copy_([*self._whole], _chain(self._masters))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the model's parameters."""
        for parameter in self._whole:
            parameter.grad = None

    def masters(self) -> dict[nn.Parameter, Tensor]:
        """Return the float32 value of each parameter."""
        return dict(zip(self._whole, _chain(self._masters), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the state by parameter, as plain AdamW has it, with the float32 copies of bf16 parameters.

        Buffers and their padding stay out of checkpoints.
        """
        state: dict[int, dict[str, Tensor]] = {}
        groups, start = [], 0
        for group, parameters in zip(self.param_groups, self._parameters, strict=True):
            numbers = list(range(start, start + len(parameters)))
            options = {name: value for name, value in group.items() if name != "params"}
            groups.append({**options, "params": numbers})
            start += len(parameters)
            flat = self.state.get(group["params"][0], {})
            parts = {name: _views(flat[name], parameters) for name in ("exp_avg", "exp_avg_sq") if name in flat}
            for index, number in enumerate(numbers if flat else ()):
                state[number] = {"step": flat["step"], **{name: views[index] for name, views in parts.items()}}
        saved: dict[str, Any] = {"state": state, "param_groups": groups}
        if self._mixed:
            saved["masters"] = dict(enumerate(_chain(self._masters)))
        return saved

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state of :meth:`state_dict`, or of a plain AdamW on the same groups.

        Raises
        ------
        KeyError
            It belongs to other groups, or lacks the float32 copies.
        """
        groups, state = state_dict["param_groups"], state_dict["state"]
        sizes = [len(group["params"]) for group in groups]
        if sizes != [len(parameters) for parameters in self._parameters]:
            raise KeyError(f"optimiser groups of {sizes} parameters")
        for group, saved, parameters in zip(self.param_groups, groups, self._parameters, strict=True):
            group.update({name: saved[name] for name in ("lr", "betas", "eps", "weight_decay") if name in saved})
            (buffer,) = group["params"]
            known = [state[number] for number in saved["params"] if number in state]
            if not known:
                self.state.pop(buffer, None)
                continue
            flat = {name: torch.zeros_like(buffer) for name in ("exp_avg", "exp_avg_sq")}
            for name, whole in flat.items():
                torch._foreach_copy_(_views(whole, parameters), [entry[name] for entry in known])
            step = torch.as_tensor(known[0]["step"], dtype=torch.float32).to(buffer.device).clone()
            self.state[buffer] = {"step": step, **flat}
        if self._mixed:
            masters = state_dict["masters"]
            torch._foreach_copy_(_chain(self._masters), [masters[number] for number in range(len(self._whole))])


def _clip_each(gradients: list[Tensor], largest: float) -> None:
    """Scale down every gradient whose norm is above `largest`, as `torch.nn.utils.clip_grad_norm_` does for all."""
    norms = torch.stack(torch._foreach_norm(gradients))
    factors = (largest / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors.unbind()))


def _chain(lists: Iterable[list[Tensor]]) -> list[Tensor]:
    return [item for items in lists for item in items]


@torch.no_grad()
def _flatten(parameters: list[nn.Parameter]) -> Tensor:
    dtypes = {parameter.dtype for parameter in parameters}
    if not dtypes <= {torch.float32, torch.bfloat16, torch.float64} or len(dtypes) > 1:
        raise UserError(f"parameters of {sorted(map(str, dtypes))}: the optimiser takes float32 or bfloat16 throughout")
    size = sum(_padded(parameter.numel()) for parameter in parameters)
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    buffer = torch.zeros(size, dtype=dtype, device=parameters[0].device)
    torch._foreach_copy_(_views(buffer, parameters), list(parameters))
    return buffer


def _views(buffer: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
    """Cut a buffer into views of the parameters' shapes, each at an aligned start."""
    views, start = [], 0
    for parameter in like:
        views.append(buffer[start : start + parameter.numel()].view_as(parameter))
        start += _padded(parameter.numel())
    return views
