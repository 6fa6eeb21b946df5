"""What the image commands share on the command line: arguments, the job, and the summary at the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrmfast.formats.manifest import SplitRule
from mrmfast.formats.pseudonyms import Pseudonyms, add_argument
from preprocess.images.partition import FILES_PER_PART, Job, run_job
from preprocess.images.picture import Outcome
from preprocess.images.sources import Naming, Source, pseudonymised


def whole_number(at_least: int) -> Callable[[str], int]:
    """Return an argparse type: an integer not below `at_least`."""

    def whole(text: str) -> int:
        value = int(text)
        if value < at_least:
            raise argparse.ArgumentTypeError(f"must be at least {at_least}")
        return value

    return whole


def share(below: float) -> Callable[[str], float]:
    """Return an argparse type: a number from 0 up to, not including, `below`."""

    def number(text: str) -> float:
        value = float(text)
        if not 0 <= value < below:
            raise argparse.ArgumentTypeError(f"must be at least 0 and below {below:g}")
        return value

    return number


def add_job_arguments(parser: argparse.ArgumentParser, source_help: str, pattern: str) -> None:
    """Add the arguments that every image command has; `pattern` is the default participant pattern."""
    parser.add_argument("source", type=Path, metavar="SRC", help=source_help)
    parser.add_argument("--out", type=Path, required=True, metavar="DATASET", help="dataset folder")
    parser.add_argument(
        "--size", type=whole_number(16), default=224, help="side of the pictures (default: %(default)s)"
    )
    parser.add_argument("--samples-per-shard", type=whole_number(1), default=1024, help="(default: %(default)s)")
    parser.add_argument("--workers", type=whole_number(1), default=2, help="processes (default: %(default)s)")
    parser.add_argument("--split-seed", type=int, default=0, help="who is held out (default: %(default)s)")
    parser.add_argument("--test-fraction", type=share(1), default=0.2, help="share held out (default: %(default)s)")
    parser.add_argument(
        "--participant-pattern",
        default=pattern,
        metavar="REGEX",
        help="matched at the start of a file name, with a group (?P<participant>...); "
        "a name that does not match is its own participant (default: %(default)s)",
    )
    parser.add_argument(
        "--participant-table",
        type=Path,
        metavar="CSV",
        help="columns file,participant[,eye]; used in place of the pattern",
    )
    add_argument(parser)
    parser.add_argument(
        "--accept-unreadable",
        action="store_true",
        help="finish with status 0 although some files cannot be read",
    )


def name_sources(arguments: argparse.Namespace, command: str, files: list[str]) -> tuple[list[Source], dict[str, int]]:
    """Find the participant of each file, as the arguments say, and print how many names do not tell one.

    Returns
    -------
    list of Source
    dict
        That number, for report and manifest.
    """
    sources, unmatched = Naming(arguments.participant_pattern, arguments.participant_table).sources(files)
    if unmatched:
        print(
            f"{command}: {unmatched} of {len(files)} file names do not tell a participant; each of these names is "
            "taken as a participant of its own (--participant-pattern or --participant-table changes this)"
        )
    return pseudonymised(sources, Pseudonyms.read(arguments.pseudonymise)), {"own_participant": unmatched}


def run_image_command(
    arguments: argparse.Namespace,
    command: str,
    sources: list[Source],
    process: Callable[[Path, Source], Outcome],
    *,
    choices: dict[str, Any],
    counts: dict[str, int],
    schema: dict[str, str],
    brightness_percent: float = 0.0,
    files_per_part: int = FILES_PER_PART,
) -> int:
    """Build the job from the parsed arguments, run it and print what came of it.

    Parameters
    ----------
    arguments : Namespace
        Of a parser with :func:`add_job_arguments`.
    command : str
    sources : list of Source
    process, schema, brightness_percent, files_per_part
        See :class:`preprocess.images.partition.Job`.
    choices : dict
        The command's own arguments that decide the bytes.
    counts : dict
        The command's own counts for report and manifest.

    Returns
    -------
    int
        Exit status: 0, or 3 if files could not be read and this was not accepted.
    """
    job = Job(
        command=command,
        root=arguments.source,
        dataset=arguments.out,
        sources=sources,
        process=process,
        arguments={"size": arguments.size, "samples_per_shard": arguments.samples_per_shard, **choices},
        image_size=arguments.size,
        samples_per_shard=arguments.samples_per_shard,
        splits=SplitRule(arguments.split_seed, arguments.test_fraction),
        pseudonyms=Pseudonyms.read(arguments.pseudonymise),
        schema=schema,
        brightness_percent=brightness_percent,
        files_per_part=files_per_part,
        counts=counts,
    )
    report, status = run_job(job, workers=arguments.workers, accept_unreadable=arguments.accept_unreadable)
    found = report["counts"]
    size = arguments.size
    print(
        f"{command}: {found['found']} files, {found['written']} pictures of {found['participants']} participants "
        f"written to {job.dataset} at {size} x {size}"
    )
    if found["set_aside"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found["set_aside"].items())
        print(f"{command}: set aside by quality control: {reasons}; listed in {job.report}")
    if found["unreadable"]:
        line = f"{found['unreadable']} of {found['found']} files could not be read and were left out"
        if status:
            print(
                f"mrmfast: error: {line}; they are listed in {job.report}; "
                "replace them and rerun, or accept with --accept-unreadable",
                file=sys.stderr,
            )
        else:
            print(f"{command}: {line}; listed in {job.report}")
    return status
