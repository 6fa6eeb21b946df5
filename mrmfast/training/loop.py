"""The training loop."""

from __future__ import annotations

import hashlib
import math
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mrmfast import config as configs
from mrmfast.atomic import write_aside
from mrmfast.batch import Batch
from mrmfast.data.loader import Loader
from mrmfast.errors import SharedError
from mrmfast.training import checkpoint
from mrmfast.training.build import Job
from mrmfast.training.export_results import write_results
from mrmfast.training.run_log import RunLog

WAITING = 0.05  # share of a step spent waiting for data from which the progress bar says why


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """Return the seed of all that is random in one forward pass: a resumed run draws what an unbroken one would."""
    digest = hashlib.sha256(f"{seed}:{step}:{micro}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def run(job: Job) -> int:
    """Train to the end, or until interrupted; return the exit status."""
    config, state, first = job.config, job.state, job.world.rank == 0
    if state.step >= job.steps:
        if first:
            print(f"mrmfast: {config.run.folder} is complete at step {state.step}", file=sys.stderr)
        if not (config.run.folder / "encoder.safetensors").exists():  # killed between checkpoint and export
            write_results(job.engine, job.loader, config, job.world, state.step)
        return 0
    log = None
    if first:
        with write_aside(config.run.folder / "config.yaml") as file:
            file.write(configs.dump(config))
        log = RunLog(config.run, state.step)
        print(_summary(job), file=sys.stderr)
        if note := config.small_passes(job.world.size):
            print(f"mrmfast: {note}", file=sys.stderr)
    interrupted = _on_interrupt()
    reporter = SetAsideReporter(job.loader, state.samples)
    batches = job.loader.batches(state.samples)
    bar = tqdm(
        total=job.steps,
        initial=state.step,
        unit="step",
        disable=not first,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    try:
        while state.step < job.steps and not interrupted.agreed:
            began = time.perf_counter()
            entry, samples, waited = train_step(job, batches, interrupted)
            took = time.perf_counter() - began
            state.seconds += took
            speed, wait = config.batch_size / took, waited / took
            slowest = f" (slowest: {job.loader.meters.slowest()})" if wait > WAITING else ""
            bar.set_postfix_str(f"loss {entry['loss']:.4f}, {speed:.0f} images/s, waiting for data {wait:.0%}{slowest}")
            bar.update()
            lines = reporter.lines(state.samples)
            if entry.get("grad_norm", 0) is None:
                left_out = job.engine.skipped_steps
                lines.append(f"step {state.step}: gradients are not finite; {left_out} steps left out so far")
            for line in lines:
                bar.write(f"mrmfast: {line}", file=sys.stderr)
            if log is not None:
                log.log({**entry, "images_per_s": speed, "data_wait": wait}, samples)
            if state.step % config.run.checkpoint_every == 0 or state.step == job.steps or interrupted.agreed:
                checkpoint.save(job.engine, config.run.folder / "checkpoints", state, config.run.keep)
                write_results(job.engine, job.loader, config, job.world, state.step)
    finally:
        bar.close()
        batches.close()
        job.dataset.source.close()
        if log is not None:
            log.close()
    if state.step == job.steps:
        return 0
    if first:
        print(f"mrmfast: interrupted at step {state.step}; go on with --resume auto", file=sys.stderr)
    return 130


def train_step(job: Job, batches: Any, interrupted: _Interrupt) -> tuple[dict[str, Any], list[dict[str, Any]], float]:
    """Do one optimiser step.

    Returns
    -------
    entry : dict
        Step, epoch, loss and its parts (means over ranks), learning rate, gradient norm (None where it is not finite:
        ZeRO then leaves the step out, and ``skipped`` counts these).
    samples : list of dict
        Keys per rank and epoch, when they are logged.
    waited : float
        Seconds spent waiting for the loader.
    """
    state, engine = job.state, job.engine
    job.schedule.step_update(state.step)
    rate = job.schedule.optimizer.param_groups[0]["lr"]
    totals: dict[str, Tensor] = {}
    micro_batches: list[Batch] = []
    waited = 0.0
    accumulation = engine.gradient_accumulation_steps()
    for micro in range(accumulation):
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        micro_batches.append(batch)
        with job.loader.meters.time("copy", len(batch.keys)):
            batch = batch.to(job.world.device)
        seed = step_seed(job.config.seed, state.step, micro, job.world.rank)
        torch.manual_seed(seed)
        loss, parts = engine(batch.image_BCHW, batch.packed, batch.present, seed)
        engine.backward(loss)
        engine.step()
        for name, value in {"loss": loss.detach(), **{f"loss/{k}": v for k, v in parts.items()}}.items():
            totals[name] = totals.get(name, 0) + value.float() / accumulation
    state.step += 1
    state.samples = micro_batches[-1].end
    job.loader.meters.add("wait", waited, job.config.batch_size // job.world.size)
    means = _mean_over_ranks(totals, interrupted)
    if not math.isfinite(means["loss"]):
        raise SharedError(
            f"loss is {means['loss']} at step {state.step}; lower optimiser.lr and go on from the last checkpoint with "
            "--resume auto, or start anew with engine.precision=fp32 and another run.name"
        )
    norm = engine.get_global_grad_norm()
    entry = {
        "step": state.step,
        "epoch": state.samples / len(job.loader.plan),
        **means,
        "lr": rate,
        **({} if norm is None else {"grad_norm": float(norm) if math.isfinite(norm) else None}),
        **({"skipped": engine.skipped_steps} if engine.skipped_steps else {}),
        **({"set_aside": len(job.loader.set_aside)} if job.loader.set_aside else {}),
    }
    return entry, _sample_lines(job, micro_batches), waited


def _mean_over_ranks(totals: dict[str, Tensor], interrupted: _Interrupt) -> dict[str, float]:
    """Average the losses; the same message carries whether any rank was interrupted, so that all stop together."""
    values = torch.stack([*totals.values(), torch.tensor(float(interrupted.asked), device=totals["loss"].device)])
    torch.distributed.all_reduce(values)
    *means, asked = (values / torch.distributed.get_world_size()).tolist()
    interrupted.agreed = asked > 0
    return dict(zip(totals, means, strict=True))


def _sample_lines(job: Job, micro_batches: list[Batch]) -> list[dict[str, Any]]:
    if not job.config.run.log_samples:
        return []
    epochs = [epoch for batch in micro_batches for epoch in batch.epochs]
    keys = [key for batch in micro_batches for key in batch.keys]
    mine = [
        {"step": job.state.step, "epoch": epoch, "rank": job.world.rank,
         "keys": [key for key, of in zip(keys, epochs, strict=True) if of == epoch]}
        for epoch in sorted(set(epochs))
    ]  # fmt: skip
    gathered: list[Any] | None = [None] * job.world.size if job.world.rank == 0 else None
    torch.distributed.gather_object(mine, gathered)
    return [line for lines in gathered or [] for line in lines]


@dataclass
class _Interrupt:
    """Ctrl-C: `asked` on this rank, `agreed` once all ranks know."""

    asked: bool = False
    agreed: bool = False


class SetAsideReporter:
    """Say which images were set aside, each once, and what that made of an epoch.

    Parameters
    ----------
    loader : Loader
    position : int
        Stream position that the run starts from.
    """

    def __init__(self, loader: Loader, position: int) -> None:
        self._loader, self._epoch = loader, position // len(loader.plan)
        self._said: set[int] = set()

    def lines(self, position: int) -> list[str]:
        """Return what is new since the last call."""
        new = [key for sample, key in self._loader.set_aside.items() if sample not in self._said]
        self._said.update(self._loader.set_aside)
        lines = [f"sample {key} cannot be read and is set aside, {len(self._said)} so far" for key in new]
        total = len(self._loader.plan)
        if self._said and position // total > self._epoch:
            lines.append(f"epoch {self._epoch}: {total - len(self._said):,} of {total:,} images, the others set aside")
        self._epoch = position // total
        return lines


def _on_interrupt() -> _Interrupt:
    """Turn SIGINT or SIGTERM into a checkpoint after the current step; the second of the same kind ends at once.

    Not any second one: where Ctrl-C reaches rank and launcher alike, the launcher sends a SIGTERM after it.
    """
    interrupt = _Interrupt()

    def handle(number: int, _: object) -> None:
        interrupt.asked = True
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return interrupt


def _summary(job: Job) -> str:
    spec = job.dataset.genome_spec()
    genome = "no genetics" if spec is None else f"{spec.n_features:,} genetic features in {len(spec.groups)} tokens"
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in job.engine.module.parameters())
    return (
        f"mrmfast: {len(job.dataset.selected):,} images, {genome}; {job.config.model.arch} with decoders, "
        f"{parameters / 1e6:.1f} M parameters; {job.world.size} x {job.world.device.type}, "
        f"{'bf16' if job.world.bf16 else 'fp32'}, ZeRO {job.config.engine.zero_stage}; "
        f"steps {job.state.step + 1} to {job.steps} of {job.config.batch_size} images -> {job.config.run.folder}"
    )
