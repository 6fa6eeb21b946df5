"""Calls on a Dask cluster."""

from __future__ import annotations

from typing import Any

import cloudpickle

from mrmfast.errors import UserError
from preprocess.parallel.calls import Call, Part, Run

SMALL_JOB = 1 << 20  # bytes, pickled


def run_on_cluster(run: Run, scheduler: str) -> None:
    """Run all calls on the cluster of a scheduler; Dask runs the calls of a lost worker again on another one.

    Raises
    ------
    UserError
        No scheduler answers, the cluster lost its workers, or a call killed each worker that ran it.
    """
    from distributed import Client, as_completed  # the import takes a second; only clusters need it
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    try:
        client = Client(scheduler, timeout=20)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {scheduler}: no Dask scheduler answers there; start one with dask scheduler"
        ) from error
    with client:
        shared = _share(client, next(iter(run.calls.values())).job)
        futures = {
            client.submit(_call_on_cluster, call.part, shared, call.task, pure=False): name
            for name, call in run.calls.items()
        }
        for future in as_completed(futures):
            try:
                run.finish(futures[future], future.result())
            except KilledWorker as error:  # Dask ran it on several workers, and each one died
                raise run.crash(futures[future]) from error
            except FutureCancelledError as error:
                raise UserError(
                    f"--scheduler {scheduler}: the cluster lost its workers or its scheduler; start them again and "
                    "rerun the same command, which resumes"
                ) from error


def _share(client: Any, job: Any) -> Any:
    """Return the job to submit with each call: for a large job, a reference to one copy per worker.

    A small job is sent with each call, because the copies are lost if all workers die at once.
    """
    small = len(cloudpickle.dumps(job)) < SMALL_JOB
    return job if small else client.scatter(job, broadcast=True, hash=False)


def _call_on_cluster(part: Part, job: Any, task: Any) -> Any:
    return Call(part, job, task)()
