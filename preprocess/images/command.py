"""Shared by the image commands: command-line arguments, the job, and the summary."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmfast.errors import UserError
from mrmfast.formats.manifest import SplitRule
from mrmfast.formats.pseudonyms import Pseudonyms, add_argument
from preprocess import parallel
from preprocess.images.image_file import DECODED_MEGABYTES, ReadOptions
from preprocess.images.job import ImageJob
from preprocess.images.outcome import REMEDIES, Outcome
from preprocess.images.participants import ParticipantRule
from preprocess.images.run import run_job
from preprocess.images.sources import SourceFile, pseudonymised


def integer(at_least: int) -> Callable[[str], int]:
    """Return an argparse type: an integer not below `at_least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = at_least - 1
        if value < at_least:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {at_least} (got {text!r})")
        return value

    return parse


def fraction(below: float) -> Callable[[str], float]:
    """Return an argparse type: a number from 0 up to, not including, `below`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < below:
            raise argparse.ArgumentTypeError(f"must be a number of at least 0 and below {below:g} (got {text!r})")
        return value

    return parse


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the seed and the fraction of the split into training and test participants."""
    parser.add_argument("--split-seed", type=int, default=0, help="seed of the train/test split (default: %(default)s)")
    parser.add_argument(
        "--test-fraction", type=fraction(1), default=0.2, help="fraction held out for testing (default: %(default)s)"
    )


def add_job_arguments(parser: argparse.ArgumentParser, source_help: str, pattern: str) -> None:
    """Add the arguments that every image command has; `pattern` is the default participant pattern."""
    parser.add_argument("source", type=Path, metavar="SRC", help=source_help)
    parser.add_argument("--out", type=Path, required=True, metavar="DATASET", help="dataset folder")
    parser.add_argument(
        "--size", type=integer(16), default=224, help="output image size in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--samples-per-shard", type=integer(1), default=1024, help="images per tar file (default: %(default)s)"
    )
    parser.add_argument("--workers", type=integer(1), default=2, help="number of processes (default: %(default)s)")
    parallel.add_scheduler_argument(parser)
    add_split_arguments(parser)
    parser.add_argument(
        "--participant-pattern",
        default=pattern,
        metavar="REGEX",
        help="regular expression for the start of a file name, with a group (?P<participant>...); "
        "a file whose name does not match is a separate participant (default: %(default)s)",
    )
    parser.add_argument(
        "--participant-table",
        type=Path,
        metavar="CSV",
        help="table with the columns file,participant[,eye]; replaces the pattern",
    )
    add_argument(parser)
    parser.add_argument(
        "--accept-unreadable",
        action="store_true",
        help="exit with status 0 even if some files cannot be read",
    )


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that decide how image files are decoded."""
    parser.add_argument(
        "--bits",
        type=integer(8),
        metavar="N",
        help="scale of images with more than 8 bits per channel: 0 to 2^N - 1 (default: what the file declares, "
        "else the smallest of 8, 10, 12, 14 and 16 bits that holds the largest value of the file)",
    )
    parser.add_argument(
        "--max-image-mb",
        type=integer(1),
        default=DECODED_MEGABYTES,
        metavar="MB",
        help="largest decoded image in 10^6 bytes, by its header; a worker needs up to about four times this "
        "(default: %(default)s)",
    )


def read_options(arguments: argparse.Namespace, background: int = 0) -> ReadOptions:
    """Return the options of :func:`add_reading_arguments`; `background` is the grey level under transparent pixels.

    Raises
    ------
    UserError
        --bits is above 16.
    """
    if arguments.bits and arguments.bits > 16:
        raise UserError(f"--bits={arguments.bits}: must be from 8 to 16")
    return ReadOptions(arguments.max_image_mb, arguments.bits, background)


def find_participants(
    arguments: argparse.Namespace, command: str, files: list[str]
) -> tuple[list[SourceFile], dict[str, int]]:
    """Find the participant of each file; print the number of file names without a participant ID.

    Returns
    -------
    list of SourceFile
    dict
        The same number, for report and manifest.
    """
    sources, unmatched = ParticipantRule(arguments.participant_pattern, arguments.participant_table).apply(files)
    if unmatched:
        print(
            f"{command}: no participant ID found in {unmatched} of {len(files)} file names; each of these files is "
            "treated as a separate participant (--participant-pattern or --participant-table changes this)"
        )
    return pseudonymised(sources, Pseudonyms.read(arguments.pseudonymise)), {"own_participant": unmatched}


@dataclass(frozen=True)
class ImageCommand:
    """The parts of a job that are specific to one image command.

    Attributes
    ----------
    name : str
    process, schema, brightness_percent, files_per_part
        See :class:`preprocess.images.job.ImageJob`.
    choices : dict
        Specific arguments that determine the output bytes.
    counts : dict
        Specific counts for report and manifest.
    """

    name: str
    process: Callable[[Path, SourceFile], Outcome]
    choices: dict[str, Any]
    counts: dict[str, int]
    schema: dict[str, str]
    brightness_percent: float = 0.0
    files_per_part: int = ImageJob.files_per_part


def run_image_command(command: ImageCommand, arguments: argparse.Namespace, sources: list[SourceFile]) -> int:
    """Build the job from the parsed arguments, run it and print the summary.

    Parameters
    ----------
    command : ImageCommand
    arguments : Namespace
        Parsed by a parser with :func:`add_job_arguments`.
    sources : list of SourceFile

    Returns
    -------
    int
        Exit status: 0, or 3 if files could not be read and --accept-unreadable was not given.
    """
    job = ImageJob(
        command=command.name,
        root=arguments.source,
        dataset=arguments.out,
        sources=sources,
        process=command.process,
        arguments={"size": arguments.size, "samples_per_shard": arguments.samples_per_shard, **command.choices},
        image_size=arguments.size,
        samples_per_shard=arguments.samples_per_shard,
        splits=SplitRule(arguments.split_seed, arguments.test_fraction),
        pseudonyms=Pseudonyms.read(arguments.pseudonymise),
        schema=command.schema,
        brightness_percent=command.brightness_percent,
        files_per_part=command.files_per_part,
        counts=command.counts,
    )
    report, status = run_job(job, arguments, accept_unreadable=arguments.accept_unreadable)
    _print_summary(job, report["counts"], accepted=status == 0)
    return status


def _print_summary(job: ImageJob, counts: dict[str, Any], accepted: bool) -> None:
    print(
        f"{job.command}: {counts['found']} files, {counts['written']} images of {counts['participants']} participants "
        f"written to {job.dataset} at {job.image_size} x {job.image_size}"
    )
    if counts["excluded"]:
        reasons = ", ".join(
            f"{count} {reason}" + (f" ({REMEDIES[reason]})" if reason in REMEDIES else "")
            for reason, count in counts["excluded"].items()
        )
        print(f"{job.command}: excluded by quality control: {reasons}; listed in {job.report}")
    for remark, count in counts["remarks"].items():
        print(f"{job.command}: {count} files: {remark}")
    if counts["unreadable"]:
        line = f"{counts['unreadable']} of {counts['found']} files could not be read and were skipped"
        if accepted:
            print(f"{job.command}: {line}; listed in {job.report}")
        else:
            print(
                f"mrmfast: error: {line}; they are listed in {job.report}; "
                "replace them and rerun, or accept with --accept-unreadable",
                file=sys.stderr,
            )
