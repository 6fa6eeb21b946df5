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
from mrmfast.training.flat_adamw import FlatAdamW
from mrmfast.training.job import Job
from mrmfast.training.late_metrics import LAG, LateMetrics
from mrmfast.training.results import write_results
from mrmfast.training.run import RunLog

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
    batches = job.loader.batches(state.samples)
    recorder = StepRecorder(job, log, interrupted)
    try:
        while state.step < job.steps and not interrupted.agreed:
            launch_step(job, batches, recorder.late, interrupted)
            save = state.step % config.run.checkpoint_every == 0 or state.step == job.steps
            recorder.read(LAG)
            if save or interrupted.agreed:
                recorder.read(0)  # a checkpoint follows the lines of its steps, and never a loss that is not finite
                checkpoint.save(job.engine, config.run.folder / "checkpoints", state, config.run.keep)
                write_results(job.engine, job.loader, config, job.world, state.step)
                recorder.resume_clock()
    finally:
        recorder.close()
        batches.close()
        job.dataset.source.close()
        if log is not None:
            log.close()
    if state.step == job.steps:
        return 0
    if first:
        print(f"mrmfast: interrupted at step {state.step}; go on with --resume auto", file=sys.stderr)
    return 130


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
    waited : float
        Seconds spent waiting for the loader.
    norm : float or None
        Gradient norm where DeepSpeed has read it already.
    """

    entry: dict[str, Any]
    samples: list[dict[str, Any]]
    position: int
    waited: float
    norm: float | None


def launch_step(job: Job, batches: Any, late: LateMetrics, interrupted: _Interrupt) -> None:
    """Issue one optimiser step without waiting for its result; `late` gets its scalars.

    ``loss`` and its parts are means over micro-batches and ranks.
    """
    state, engine, world = job.state, job.engine, job.world
    job.schedule.step_update(state.step)
    rate = job.schedule.optimizer.param_groups[0]["lr"]
    names, total = (), None
    micro_batches: list[Batch] = []
    waited = 0.0
    accumulation = engine.gradient_accumulation_steps()
    for micro in range(accumulation):
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        micro_batches.append(batch)
        with job.loader.meters.time("copy", len(batch.keys)):
            batch = batch.to(world.device)
        seed = step_seed(job.config.seed, state.step, micro, world.rank)
        torch.manual_seed(seed)
        loss, parts = engine(batch.image_BCHW, batch.packed, batch.present, seed)
        engine.backward(loss)
        engine.step()
        names = ("loss", *(f"loss/{name}" for name in parts))
        values = torch.stack([loss.detach().float(), *(value.float() for value in parts.values())]) / accumulation
        total = values if total is None else total + values
    state.step += 1
    state.samples = micro_batches[-1].end
    job.loader.meters.add("wait", waited, job.config.batch_size // world.size)
    entry = {"step": state.step, "epoch": state.samples / len(job.loader.plan), "lr": rate}
    norm = engine.optimizer.norm if isinstance(engine.optimizer, FlatAdamW) else engine.get_global_grad_norm()
    launched = Launched(
        entry, _sample_lines(job, micro_batches), state.samples, waited, None if isinstance(norm, Tensor) else norm
    )
    names, values = _shared(names, total, world.size, interrupted)
    if isinstance(norm, Tensor):
        names, values = (*names, "grad_norm"), torch.cat([values, norm.detach().float().reshape(1)])
    late.push(names, values, launched)


def _shared(
    names: tuple[str, ...], values: Tensor, ranks: int, interrupted: _Interrupt
) -> tuple[tuple[str, ...], Tensor]:
    """Average losses over ranks; the same message carries whether any rank was interrupted, so that all stop together."""
    if ranks == 1:
        interrupted.agreed = interrupted.asked
        return names, values
    asked = torch.full((1,), float(interrupted.asked), device=values.device)
    values = torch.cat([values, asked])
    torch.distributed.all_reduce(values)
    return (*names, "asked"), values / ranks


class StepRecorder:
    """Read steps back, stop a run that diverges, and write the log, the progress bar and the console.

    Parameters
    ----------
    job : Job
    log : RunLog or None
        On rank 0.
    interrupted : _Interrupt
    """

    def __init__(self, job: Job, log: RunLog | None, interrupted: _Interrupt) -> None:
        self.late = LateMetrics()
        self._job, self._log, self._interrupted = job, log, interrupted
        self._reporter = SetAsideReporter(job.loader, job.state.samples)
        self._bar = tqdm(
            total=job.steps,
            initial=job.state.step,
            unit="step",
            disable=job.world.rank != 0,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10,
        )
        self.resume_clock()

    def resume_clock(self) -> None:
        """Count the time of the next step from now: saving is not training."""
        self._clock = time.perf_counter()

    def read(self, lag: int) -> None:
        """Read all but the last `lag` steps.

        Raises
        ------
        SharedError
            A loss is not finite.
        """
        while len(self.late) > lag:
            values, launched = self.late.pop()
            self._record(values, launched)

    def _record(self, values: dict[str, float], launched: Launched) -> None:
        job, now = self._job, time.perf_counter()
        took, self._clock = now - self._clock, now
        job.state.seconds += took
        if values.pop("asked", 0.0) > 0:
            self._interrupted.agreed = True
        entry = step_entry(job, values, launched)
        speed, wait = job.config.batch_size / took, min(1.0, launched.waited / took)
        slowest = f" (slowest: {job.loader.meters.slowest()})" if wait > WAITING else ""
        text = f"loss {entry['loss']:.4f}, {speed:.0f} images/s, waiting for data {wait:.0%}{slowest}"
        measured = {"images_per_s": speed, "data_wait": wait}
        if job.flops is not None:
            measured["mfu"] = job.flops.utilisation(speed)
            text += f", MFU {measured['mfu']:.0%}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
        lines = self._reporter.lines(launched.position)
        if entry.get("grad_norm", 0) is None:
            skipped = job.engine.skipped_steps
            lines.append(f"step {entry['step']}: gradients are not finite; {skipped} steps skipped so far")
        for line in lines:
            self._bar.write(f"mrmfast: {line}", file=sys.stderr)
        if self._log is not None:
            self._log.log({**entry, **measured}, launched.samples)

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()


def step_entry(job: Job, values: dict[str, float], launched: Launched) -> dict[str, Any]:
    """Return a step's line for the log.

    ``grad_norm`` is None where the gradients are not finite: the step was then skipped, and ``skipped`` counts these.

    Raises
    ------
    SharedError
        The loss is not finite.
    """
    norm = values.pop("grad_norm", launched.norm)
    step = launched.entry["step"]
    if not math.isfinite(values["loss"]):
        raise SharedError(
            f"loss is {values['loss']} at step {step}; lower optimiser.lr and go on from the last checkpoint with "
            "--resume auto, or start anew with engine.precision=fp32 and another run.name"
        )
    engine = job.engine
    if isinstance(engine.optimizer, FlatAdamW) and norm is not None and not math.isfinite(norm):
        engine.skipped_steps += 1  # DeepSpeed counts its own; this optimiser leaves a step out on the device
    entry, rate = dict(launched.entry), launched.entry["lr"]
    del entry["lr"]
    return {
        **entry,
        **values,
        "lr": rate,
        **({} if norm is None else {"grad_norm": float(norm) if math.isfinite(norm) else None}),
        **({"skipped": engine.skipped_steps} if engine.skipped_steps else {}),
        **({"set_aside": len(job.loader.set_aside)} if job.loader.set_aside else {}),
    }


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
