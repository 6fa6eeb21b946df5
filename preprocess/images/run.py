"""Image preprocessing in parts: begin, process one part after another, finalise.

The last step applies the brightness limits, which need all parts, copies the kept images into shards, and writes table,
manifest and report. Every byte depends only on the source files and the arguments: a killed and repeated run, a run
with more workers and a run on a cluster give the same dataset.
"""

from __future__ import annotations

import argparse
import json
import shutil
from typing import Any

from filelock import FileLock, Timeout

from mrmfast.errors import UserError
from mrmfast.formats.records import recording
from preprocess import parallel
from preprocess.images.finalise import finalise
from preprocess.images.job import ImageJob, begin, is_complete, record_finished
from preprocess.images.partition import PARTS, Part, cut_into_parts, describe_crash, process_part

STATUS_UNREADABLE = 3


def run_job(job: ImageJob, arguments: argparse.Namespace, *, accept_unreadable: bool) -> tuple[dict[str, Any], int]:
    """Run or resume a job.

    Parameters
    ----------
    job : ImageJob
    arguments : Namespace
        ``workers`` and ``scheduler``: :func:`preprocess.parallel.run_parts`.
    accept_unreadable : bool
        Unreadable files are counted in the report but do not cause status 3.

    Returns
    -------
    dict
        The report.
    int
        0, or 3 if files could not be read.

    Raises
    ------
    UserError
        The dataset was created with other arguments, another run is writing it, or no file is usable.
    """
    (job.dataset / "images").mkdir(parents=True, exist_ok=True)
    lock = FileLock(job.dataset / "images" / ".preprocess.lock")
    try:
        with lock.acquire(timeout=0), recording(job.dataset):
            if is_complete(job, begin(job)):
                report = json.loads(job.report.read_bytes())
            else:
                parts = cut_into_parts(job.root, job.dataset, job.sources, job.files_per_part)
                _process(job, parts, arguments)
                job.pseudonyms.check(job.dataset)  # genetics may have been written meanwhile
                report = finalise(job, parts, arguments)
                # The parts are kept while files are unreadable: a rerun processes only replaced files.
                if not report["unreadable"] or accept_unreadable:
                    record_finished(job)
                    shutil.rmtree(job.dataset / PARTS)
    except Timeout as error:
        raise UserError(f"{job.dataset}: another preprocessor is writing its images; wait for it or stop it") from error
    return report, STATUS_UNREADABLE if report["unreadable"] and not accept_unreadable else 0


def _process(job: ImageJob, parts: list[Part], arguments: argparse.Namespace) -> None:
    """Process the parts that no earlier run finished."""
    pending = [part for part in parts if not part.is_done()]
    sizes = [len(part.sources) for part in pending]
    parallel.run_parts(
        process_part,
        job.process,
        pending,
        sizes,
        arguments,
        job.command,
        "file",
        processes=True,
        done=len(job.sources) - sum(sizes),
        describe=describe_crash,
    )
