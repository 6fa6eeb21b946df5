"""Shared by the image commands: command-line arguments, the job, and the summary."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mrmfast.errors import UserError
from mrmfast.formats.pseudonyms import Pseudonyms, add_argument
from preprocess import parallel
from preprocess.images.image_file import DECODED_MEGABYTES, ReadOptions
from preprocess.images.job import ImageJob
from preprocess.images.layouts import CLASSES, OWN
from preprocess.images.listing import OTHER_SUFFIXES, counted, list_files
from preprocess.images.outcome import REMEDIES, Outcome
from preprocess.images.participants import ParticipantRule
from preprocess.images.run import run_job
from preprocess.images.sources import SourceFile, pseudonymised
from preprocess.splits import add_split_arguments, split_rule


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


def add_job_arguments(parser: argparse.ArgumentParser, source_help: str) -> None:
    """Add the arguments that every image command has."""
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
        metavar="REGEX",
        help="regular expression searched in the path below SRC, with a group (?P<participant>...) and, optionally, "
        "(?P<eye>...) and (?P<visit>...); a file that does not match is a separate participant (default: recognise UK "
        "Biobank's names, TCGA barcodes, ID_left.jpg, folders of patients, visits and eyes, folders of classes)",
    )
    parser.add_argument(
        "--participant-table",
        "--participants",
        type=Path,
        metavar="FILE",
        help="table (CSV, TSV, ...) with the columns file (path below SRC) and participant and, optionally, eye and "
        "visit; replaces the pattern; further columns are kept as labels",
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
        help="largest decoded image in 10^6 bytes, by its header; a worker needs up to about six times this "
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


def find_sources(
    arguments: argparse.Namespace,
    command: str,
    suffixes: tuple[str, ...],
    is_mask: Callable[[PurePosixPath], bool] = lambda path: False,
) -> tuple[list[SourceFile], dict[str, Any]]:
    """List the files of SRC and find their participants; print what is skipped, and how participants are identified.

    Parameters
    ----------
    arguments : Namespace
        Parsed by a parser with :func:`add_job_arguments`.
    command : str
        Name of the command, for the printed lines.
    suffixes : tuple of str
        Lower case, with the dot.
    is_mask : callable
        Whether a path below SRC is a mask; masks are skipped.

    Returns
    -------
    list of SourceFile
    dict
        The printed counts, for report and manifest.

    Raises
    ------
    UserError
        SRC has no such files, or the participants cannot be told apart.
    """
    listing = list_files(arguments.source, suffixes, is_mask)
    if listing.masks:
        print(f"{command}: {listing.masks} masks are skipped")
    if listing.skipped:
        others = [name for name in listing.skipped if name in OTHER_SUFFIXES]
        remedy = f"; convert {', '.join(others)} to PNG or TIFF to use them" if others else ""
        print(f"{command}: skipped below SRC: {counted(listing.skipped)}{remedy}")
    participants = ParticipantRule(arguments.participant_pattern, arguments.participant_table).apply(listing.files)
    people = len({source.participant for source in participants.sources})
    print(f"{command}: {people} participants, identified by: {counted(participants.layouts)}")
    own = sum(participants.layouts.get(layout, 0) for layout in (OWN, CLASSES))
    if own:
        print(
            f"{command}: no participant ID found in the paths of {own} of {len(listing.files)} files; each of these "
            "files is treated as a separate participant (--participant-pattern or --participant-table changes this)"
        )
    if participants.unused_rows:
        print(f"{command}: {participants.unused_rows} rows of the participant table name no file below SRC")
    labels = any(source.labels for source in participants.sources)
    if labels and arguments.pseudonymise:
        print(f"{command}: the further columns of the participant table are not kept, since they may hold other IDs")
    counts = {
        "own_participant": own,
        "identified_by": participants.layouts,
        "masks_skipped": listing.masks,
        "skipped": listing.skipped,
        "table_rows_unused": participants.unused_rows,
    }
    return pseudonymised(participants.sources, Pseudonyms.read(arguments.pseudonymise)), counts


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
    counts: dict[str, Any]
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
    pseudonyms = Pseudonyms.read(arguments.pseudonymise)
    job = ImageJob(
        command=command.name,
        root=arguments.source,
        dataset=arguments.out,
        sources=sources,
        process=command.process,
        arguments={"size": arguments.size, "samples_per_shard": arguments.samples_per_shard, **command.choices},
        image_size=arguments.size,
        samples_per_shard=arguments.samples_per_shard,
        splits=split_rule(arguments, pseudonyms),
        pseudonyms=pseudonyms,
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
