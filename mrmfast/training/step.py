"""One optimiser step, issued without waiting for its result."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrmfast.batch import Batch, ViewSpec
from mrmfast.data.prefetch import DevicePrefetcher
from mrmfast.objectives.base import StepInfo
from mrmfast.ops import photometric
from mrmfast.training.build import Job
from mrmfast.training.flat_adamw import FlatAdamW
from mrmfast.training.late_metrics import LateMetrics


@dataclass
class Interrupt:
    """Ctrl-C: `asked` on this rank, `agreed` once all ranks know."""

    asked: bool = False
    agreed: bool = False


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Return the seed of all that is random in one forward pass: a resumed run draws what an unbroken one would."""
    digest = hashlib.sha256(f"{seed}:{step}:{micro}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Launched:
    """What the host knows of a step while the device works on it.

    Attributes
    ----------
    entry : dict
        Step, epoch and learning rate.
    samples : list of dict
        Keys per rank and epoch, when they are logged.
    position : int
        Stream position after the step.
    norm : float or None
        Gradient norm where DeepSpeed has read it already.
    """

    entry: dict[str, Any]
    samples: list[dict[str, Any]]
    position: int
    norm: float | None


def change_colours(batch: Batch, specs: tuple[ViewSpec, ...]) -> tuple[Tensor, ...]:
    """Return the views of a batch with the photometric changes that the loader drew, on their device."""
    triples = zip(batch.views, batch.photometric, specs, strict=True)
    return tuple(photometric.apply(view, drawn, spec.photometric) for view, drawn, spec in triples)


def launch_step(job: Job, batches: DevicePrefetcher, late: LateMetrics, interrupted: Interrupt) -> None:
    """Issue one optimiser step without waiting for its result; `late` gets its scalars.

    ``loss`` and its parts are means over micro-batches and ranks.
    """
    state, engine, world = job.state, job.engine, job.world
    job.schedule.step_update(state.step)
    rate = job.schedule.optimizer.param_groups[0]["lr"]
    names: tuple[str, ...] = ()
    total: Tensor | None = None
    micro_batches: list[Batch] = []
    waited, copied = batches.waited, batches.copied
    accumulation = engine.gradient_accumulation_steps()
    for micro in range(accumulation):
        batch = next(batches)
        micro_batches.append(batch)
        seed = step_seed(job.config.seed, state.step, micro, world.rank)
        views = change_colours(batch, job.loader.views)
        loss, parts = engine(views, batch.packed, batch.present, batch.target, seed, state.step, job.steps)
        engine.backward(loss)
        engine.step()
        names = ("loss", *(f"loss/{name}" for name in parts))
        values = torch.stack([loss.detach().float(), *(value.float() for value in parts.values())]) / accumulation
        total = values if total is None else total + values
        if micro + 1 < accumulation or state.step + 1 < job.steps:
            batches.stage()  # the device has its work: waiting for the next batch and copying it hide behind that
    assert total is not None
    engine.module.after_step(StepInfo(step_seed(job.config.seed, state.step, 0, 0), state.step, job.steps))
    state.step += 1
    state.samples = micro_batches[-1].end
    share = job.config.batch_size // world.size
    job.loader.meters.add("wait", batches.waited - waited, share)
    job.loader.meters.add("copy", batches.copied - copied, share)
    entry = {"step": state.step, "epoch": state.samples / len(job.loader.sampler), "lr": rate}
    norm = engine.optimizer.norm if isinstance(engine.optimizer, FlatAdamW) else engine.get_global_grad_norm()
    launched = Launched(
        entry, _sample_lines(job, micro_batches), state.samples, None if isinstance(norm, Tensor) else norm
    )
    names, values = _shared(names, total, world.size, interrupted)
    if isinstance(norm, Tensor):
        names, values = (*names, "grad_norm"), torch.cat([values, norm.detach().float().reshape(1)])
    late.push(names, values, launched)


def _shared(
    names: tuple[str, ...], values: Tensor, ranks: int, interrupted: Interrupt
) -> tuple[tuple[str, ...], Tensor]:
    """Average losses over ranks; the same message carries interrupts, so that all ranks stop at the same step."""
    if ranks == 1:
        interrupted.agreed = interrupted.asked
        return names, values
    asked = torch.full((1,), float(interrupted.asked), device=values.device)
    values = torch.cat([values, asked])
    torch.distributed.all_reduce(values)
    return (*names, "asked"), values / ranks


def _sample_lines(job: Job, micro_batches: list[Batch]) -> list[dict[str, Any]]:
    if not job.config.run.log_samples:
        return []
    epochs = [epoch for batch in micro_batches for epoch in batch.epochs]
    keys = [key for batch in micro_batches for key in batch.keys]
    own = [
        {"step": job.state.step, "epoch": epoch, "rank": job.world.rank,
         "keys": [key for key, of in zip(keys, epochs, strict=True) if of == epoch]}
        for epoch in sorted(set(epochs))
    ]  # fmt: skip
    gathered: list[Any] | None = [None] * job.world.size if job.world.rank == 0 else None
    torch.distributed.gather_object(own, gathered)
    return [line for lines in gathered or [] for line in lines]
