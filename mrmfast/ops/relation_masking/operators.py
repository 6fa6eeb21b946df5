"""The operators of torch: ``mrmfast::relation_forward`` and ``relation_backward``, declared once for every device.

``torch.compile`` sees one opaque node with known shapes and strides; so do fake tensors. A device's kernels write into
views that are allocated here: both branches stacked along the batch, heads last, so that nothing is concatenated before
or after. ``README.md`` has the maths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mrmfast.ops.relation_masking import cpu

# What a call computes from S samples:
# intact  R V of each                                    S samples out
# masked  R^M V of each                                  S samples out
# both    R V of each, then R^M V of each               2S samples out
# halves  R V of the first half, R^M V of the second     S samples out
Form = Literal["intact", "masked", "both", "halves"]
LARGEST_KEYS, LARGEST_WIDTH = 1024, 128  # of the GPU path: a row of logits lies in registers


def _gpu() -> ModuleType:
    from mrmfast.ops.relation_masking import triton  # models import without Triton

    return triton


def _cpu_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return cpu.supports(q, k, v)


def _gpu_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    alike = q.dtype == k.dtype == v.dtype and q.shape[:2] == k.shape[:2] and k.shape == v.shape
    fits = k.shape[-2] <= LARGEST_KEYS and q.shape[-1] <= LARGEST_WIDTH
    return HAS_TRITON and q.dtype in GPU_DTYPES and alike and fits


class Device(NamedTuple):
    """The kernels of a kind of device.

    Attributes
    ----------
    kernels : callable
        Imports the module with ``forward`` and ``backward``.
    takes : callable
        Tells whether the kernels take such q, k, v.
    dtypes : tuple of torch.dtype
        What the kernels read; other types are widened to float32.
    statistics : int
        float32 numbers a row saves for the backward pass.
    """

    kernels: Callable[[], ModuleType]
    takes: Callable[[Tensor, Tensor, Tensor], bool]
    dtypes: tuple[torch.dtype, ...]
    statistics: int


HAS_TRITON = find_spec("triton") is not None
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES = {
    "cpu": Device(lambda: cpu, _cpu_takes, (torch.float32, torch.bfloat16), 3),
    "cuda": Device(_gpu, _gpu_takes, GPU_DTYPES, 2),
}


class Launch(NamedTuple):
    """One kernel launch: its input samples, and the rows of its outputs in the stacked result.

    Attributes
    ----------
    samples : slice
    intact, masked : slice or None
        None: this output is not computed.
    """

    samples: slice
    intact: slice | None
    masked: slice | None


def launches_of(form: str, samples: int) -> list[Launch]:
    """Split a call into launches."""
    all_samples = slice(0, samples)
    if form == "halves":
        first, second = slice(0, samples // 2), slice(samples // 2, samples)
        return [Launch(first, first, None), Launch(second, None, second)]
    if form == "both":
        return [Launch(all_samples, all_samples, slice(samples, 2 * samples))]
    return [Launch(all_samples, all_samples if form == "intact" else None, all_samples if form == "masked" else None)]


def queries_keys_values(projections: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return q (S, H, N, d), k and v (S, H, M, d) as views of one packed (3, S, H, N, d) or of three tensors."""
    q, k, v = projections[0].unbind() if len(projections) == 1 else projections
    return q, k, v


def heads_last(like: Tensor, samples: int, tokens: int, width: int) -> Tensor:
    """Return an empty (samples, H, tokens, width) that lies in memory as (samples, tokens, H, width)."""
    return like.new_empty(samples, tokens, like.shape[1], width).transpose(1, 2)


def new_outputs(q: Tensor, v: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Return the empty result and the empty statistics of rows, (S, H, N, numbers)."""
    samples, heads, queries, _ = q.shape
    out = heads_last(q, 2 * samples if form == "both" else samples, queries, v.shape[3])
    # Without memory, on "meta", are the launches of a GPU that is not there.
    numbers = DEVICES["cuda" if q.device.type == "meta" else q.device.type].statistics
    return out, q.new_empty(samples, heads, queries, numbers, dtype=torch.float32)


def new_gradients(projections: Sequence[Tensor]) -> list[Tensor]:
    """Return empty gradients: of a packed projection one tensor that lies as (S, N, 3, H, d)."""
    if len(projections) == 1:
        _, samples, heads, tokens, width = projections[0].shape
        return [projections[0].new_empty(samples, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)]
    return [heads_last(x, x.shape[0], x.shape[2], x.shape[3]) for x in projections]


def run_forward(device: ModuleType, projections: Sequence[Tensor], count: int, form: str) -> tuple[Tensor, Tensor]:
    """Compute all parts with the kernels of a device.

    Parameters
    ----------
    device : module
        With ``forward(q, k, v, count, rows, intact, masked)``, which writes into the last three.
    projections : list of Tensor
        See :func:`queries_keys_values`.
    count : int
        m, how many entries of a row are masked.
    form : str
        See :data:`Form`.

    Returns
    -------
    out : Tensor, (S, H, N, d), or (2 S, H, N, d) for both
    rows : Tensor, float32, (S, H, N, numbers)
        What the backward pass needs to know of each row.
    """
    q, k, v = queries_keys_values(projections)
    out, rows = new_outputs(q, v, form)
    for samples, intact, masked in launches_of(form, len(q)):
        views = (None if where is None else out[where] for where in (intact, masked))
        device.forward(q[samples], k[samples], v[samples], count, rows[samples], *views)
    return out, rows


def run_backward(
    device: ModuleType, projections: Sequence[Tensor], rows: Tensor, d_out: Tensor, count: int, form: str
) -> list[Tensor]:
    """Compute the gradients of all parts with the kernels of a device.

    Parameters
    ----------
    device : module
        With ``backward(q, k, v, rows, d_intact, d_masked, count, dq, dk, dv)``, which writes into the last three.
    projections, count, form
        As in :func:`run_forward`.
    rows, d_out : Tensor
        What the forward pass returned, and the gradient of its first result.

    Returns
    -------
    list of Tensor
        A gradient of each projection.
    """
    q, k, v = queries_keys_values(projections)
    gradients = new_gradients(projections)
    dq, dk, dv = queries_keys_values(gradients)
    for samples, intact, masked in launches_of(form, len(q)):
        views = (None if where is None else d_out[where] for where in (intact, masked))
        inputs, results = (x[samples] for x in (q, k, v, rows)), (x[samples] for x in (dq, dk, dv))
        device.backward(*inputs, *views, count, *results)
    return gradients


@torch.library.custom_op("mrmfast::relation_forward", mutates_args=(), device_types="cpu")
def forward(projections: Sequence[Tensor], count: int, form: str) -> tuple[Tensor, Tensor]:
    """See :func:`run_forward`."""
    return run_forward(DEVICES["cpu"].kernels(), projections, count, form)


@torch.library.custom_op("mrmfast::relation_backward", mutates_args=(), device_types="cpu")
def backward(projections: Sequence[Tensor], rows: Tensor, d_out: Tensor, count: int, form: str) -> list[Tensor]:
    """See :func:`run_backward`."""
    return run_backward(DEVICES["cpu"].kernels(), projections, rows, d_out, count, form)


@forward.register_kernel("cuda")
def _(projections: Sequence[Tensor], count: int, form: str) -> tuple[Tensor, Tensor]:
    return run_forward(DEVICES["cuda"].kernels(), projections, count, form)


@backward.register_kernel("cuda")
def _(projections: Sequence[Tensor], rows: Tensor, d_out: Tensor, count: int, form: str) -> list[Tensor]:
    return run_backward(DEVICES["cuda"].kernels(), projections, rows, d_out, count, form)


@forward.register_fake
def _(projections: Sequence[Tensor], count: int, form: str) -> tuple[Tensor, Tensor]:
    _check_devices(projections)
    q, _, v = queries_keys_values(projections)
    return new_outputs(q, v, form)


@backward.register_fake
def _(projections: Sequence[Tensor], rows: Tensor, d_out: Tensor, count: int, form: str) -> list[Tensor]:
    _check_devices([*projections, rows, d_out])
    return new_gradients(projections)


def _check_devices(tensors: Sequence[Tensor]) -> None:
    torch._check(
        len({tensor.device for tensor in tensors}) == 1, lambda: "relation masking: tensors on several devices"
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    projections, ctx.count, ctx.form = inputs
    ctx.save_for_backward(*projections, output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_out: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *projections, rows = ctx.saved_tensors
    if d_out is None:
        return [None] * len(projections), None, None
    return backward(projections, rows, d_out, ctx.count, ctx.form), None, None


forward.register_autograd(_differentiate, setup_context=_save)
