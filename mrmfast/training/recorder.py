"""Metrics of completed steps: the check that the loss is finite, the log, the progress bar, the console."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from tqdm import tqdm

from mrmfast.data.loader import Loader
from mrmfast.errors import SharedError
from mrmfast.training.build import Job
from mrmfast.training.compile import count_graphs
from mrmfast.training.flat_adamw import FlatAdamW
from mrmfast.training.late_metrics import LateMetrics
from mrmfast.training.run_log import RunLog
from mrmfast.training.step import Interrupt, Launched

WAITING = 0.05  # fraction of a step; above it, the progress bar names the slowest stage of the loader


class StepRecorder:
    """Read the metrics of completed steps, stop a run that diverges, and write the log, progress bar and console.

    Parameters
    ----------
    job : Job
    log : RunLog or None
        On rank 0.
    interrupted : Interrupt
    """

    def __init__(self, job: Job, log: RunLog | None, interrupted: Interrupt) -> None:
        self.late = LateMetrics()
        self._job, self._log, self._interrupted = job, log, interrupted
        self._reporter = SkippedSamplesReporter(job.loader, job.state.samples)
        self._reports_graphs = log is not None and job.config.engine.compile != "off"
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
        """Start the time of the next step now, so that saving does not count as training."""
        self._clock = time.perf_counter()
        self._waited = self._job.loader.meters.stages["wait"].seconds

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
        waited = job.loader.meters.stages["wait"].seconds
        wait, self._waited = min(1.0, (waited - self._waited) / took), waited
        speed = job.config.batch_size / took
        slowest = f" (slowest: {job.loader.meters.slowest()})" if wait > WAITING else ""
        text = f"loss {entry['loss']:.4f}, {speed:.0f} images/s, waiting for data {wait:.0%}{slowest}"
        measured = {"images_per_s": speed, "data_wait": wait}
        if job.utilisation is not None:
            measured["mfu"] = job.utilisation.of(speed)
            text += f", MFU {measured['mfu']:.0%}"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
        lines = self._reporter.lines(launched.position)
        if entry.get("grad_norm", 0) is None:
            skipped = job.engine.skipped_steps
            lines.append(f"step {entry['step']}: gradients are not finite; {skipped} steps skipped so far")
        if self._reports_graphs:  # once: the first step has called all code
            compiled, read = count_graphs()
            lines.append(f"engine.compile: {compiled} graphs compiled, {read} read from the cache")
            self._reports_graphs = False
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
            f"loss is {values['loss']} at step {step}; lower optimiser.lr and resume from the latest checkpoint with "
            "--resume auto, or start again with engine.precision=fp32 and another run.name"
        )
    engine = job.engine
    if isinstance(engine.optimizer, FlatAdamW) and norm is not None and not math.isfinite(norm):
        engine.skipped_steps += 1  # DeepSpeed counts its own; this optimiser skips a step on the device
    entry, rate = dict(launched.entry), launched.entry["lr"]
    del entry["lr"]
    return {
        **entry,
        **values,
        "lr": rate,
        **({} if norm is None else {"grad_norm": float(norm) if math.isfinite(norm) else None}),
        **({"skipped": engine.skipped_steps} if engine.skipped_steps else {}),
        **({"skipped_samples": len(job.loader.skipped_samples)} if job.loader.skipped_samples else {}),
    }


class SkippedSamplesReporter:
    """Report each skipped sample once, and the number of skipped samples at the end of an epoch.

    Parameters
    ----------
    loader : Loader
    position : int
        Stream position that the run starts from.
    """

    def __init__(self, loader: Loader, position: int) -> None:
        self._loader, self._epoch = loader, position // len(loader.sampler)
        self._reported: set[int] = set()

    def lines(self, position: int) -> list[str]:
        """Return the lines to print since the last call."""
        new = [key for sample, key in self._loader.skipped_samples.items() if sample not in self._reported]
        self._reported.update(self._loader.skipped_samples)
        lines = [f"sample {key} cannot be read and is skipped, {len(self._reported)} so far" for key in new]
        total = len(self._loader.sampler)
        if self._reported and position // total > self._epoch:
            lines.append(
                f"epoch {self._epoch}: {total - len(self._reported):,} of {total:,} images, the others skipped"
            )
        self._epoch = position // total
        return lines
