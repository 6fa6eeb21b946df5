"""The training loop."""

from __future__ import annotations

import signal
import sys

from mrmfast import config as configs
from mrmfast.atomic import write_aside
from mrmfast.data.prefetch import DevicePrefetcher
from mrmfast.training import checkpoint
from mrmfast.training.build import Job
from mrmfast.training.export_results import write_results
from mrmfast.training.late_metrics import allowed_lag
from mrmfast.training.recorder import StepRecorder
from mrmfast.training.run_log import RunLog
from mrmfast.training.step import Interrupt, launch_step


def run(job: Job) -> int:
    """Train to the end, or until interrupted; return the exit status."""
    config, state, first = job.config, job.state, job.world.rank == 0
    if state.step >= job.steps:
        if first:
            print(f"mrmfast: {config.run.folder} is complete at step {state.step}", file=sys.stderr)
        # A kill between checkpoint and export leaves no encoder, or the one of an earlier checkpoint.
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
    batches = DevicePrefetcher(job.loader.batches(state.samples), job.world.device)
    recorder = StepRecorder(job, log, interrupted)
    lag = allowed_lag(job.world.device)
    try:
        while state.step < job.steps and not interrupted.agreed:
            launch_step(job, batches, recorder.late, interrupted)
            save = state.step % config.run.checkpoint_every == 0 or state.step == job.steps
            recorder.read(lag)
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
        print(f"mrmfast: interrupted at step {state.step}; resume with --resume auto", file=sys.stderr)
    return 130


def _on_interrupt() -> Interrupt:
    """Turn SIGINT or SIGTERM into a checkpoint after the current step; the second of the same kind ends at once.

    Not any second one: where Ctrl-C reaches rank and launcher alike, the launcher sends a SIGTERM after it.
    """
    interrupt = Interrupt()

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
        f"mrmfast: {len(job.dataset.selected):,} images, {genome}; "
        f"{job.config.objective.name} of {job.config.model.arch}, {parameters / 1e6:.1f} M parameters; "
        f"{job.world.size} x {job.world.device.type}, "
        f"{'bf16' if job.world.bf16 else 'fp32'}, ZeRO {job.state.zero_stage}, passes of {job.state.micro_batch}; "
        f"steps {job.state.step + 1} to {job.steps} of {job.config.batch_size} images -> {job.config.run.folder}"
    )
