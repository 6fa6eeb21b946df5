"""Shared by the four genetics commands: arguments, checks of the dataset folder, reports and ledgers."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mrmfast.atomic import sweep_partials, write_aside
from mrmfast.errors import UserError
from mrmfast.formats.genetics import STORE
from mrmfast.formats.manifest import NAME, SplitRule, claim_splits, read_manifest
from mrmfast.formats.pseudonyms import Pseudonyms, add_argument
from preprocess.genetics.remote import is_url, location

PARTS = ".parts"  # suffix of the folder with finished parts, after the command's name
COPIES = ".genotypes"  # suffix of the folder with PGEN copies of the source


def add_common_arguments(parser: argparse.ArgumentParser, source: str, keep: bool = True) -> None:
    """Add SRC, --out and the split rule (and --keep) to a command."""
    parser.add_argument("src", metavar="SRC", type=location, help=source)
    parser.add_argument("--out", metavar="DATASET", type=location, required=True, help="dataset folder")
    parser.add_argument("--split-seed", type=int, default=0, help="seed of the train/test split (default 0)")
    parser.add_argument("--test-fraction", type=float, default=0.2, help="fraction held out for testing (default 0.2)")
    if keep:
        parser.add_argument(
            "--keep",
            metavar="FILE",
            type=Path,
            help="participants to keep, as plink2 reads such a list: IDs, or FID and IID, or a table with #IID",
        )
    add_argument(parser)


def add_genotype_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --sample and --all-filters to a command that reads genotypes."""
    parser.add_argument(
        "--sample",
        metavar="FILE",
        type=Path,
        help="table of samples (.fam, .psam, .sample) of all genotype files; the table beside each file by default",
    )
    parser.add_argument(
        "--all-filters",
        action="store_true",
        help="use all variants; by default those whose FILTER (VCF, .pvar) is neither PASS nor . are excluded",
    )


def print_participants(counts: dict[str, int]) -> None:
    """Print the counts of :func:`preprocess.genetics.cohort.select`."""
    training = f"{counts['training']} training, " if "training" in counts else ""
    print(f"  participants: {training}{counts['withdrawn']} withdrawn rows excluded")
    if counts["not_in_keep_list"] or counts["keep_ids_absent"]:
        print(
            f"  --keep: {counts['not_in_keep_list']} participants are not listed and are excluded; "
            f"{counts['keep_ids_absent']} listed IDs are not in the genotypes"
        )


@contextmanager
def writing(arguments: argparse.Namespace, command: str, modalities: Iterable[str]) -> Iterator[None]:
    """Lock the dataset folder for one command, and remove partial files of a killed run of this command.

    Raises
    ------
    UserError
        SRC does not exist, a path is not local, or the same command is already writing to the dataset.
    """
    for name in (arguments.src, arguments.out):
        if is_url(name):
            raise UserError(f"{name}: this command reads and writes local folders only; copy it first")
    if not arguments.src.exists():
        raise UserError(f"{arguments.src}: does not exist; give the file or folder with the source data")
    arguments.out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(arguments.out / f".{command}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{arguments.out}: another {command} command is writing there; wait until it ends") from error
    try:
        _sweep(arguments.out, command, modalities)
        yield
    finally:
        lock.release()


def check_target(arguments: argparse.Namespace, modalities: Iterable[str]) -> tuple[SplitRule, Pseudonyms]:
    """Check that the modalities can be written, before any long work; called inside :func:`writing`.

    Returns
    -------
    SplitRule
    Pseudonyms
        Applied to ids after withdrawals and --keep: the split depends on the stored ids.

    Raises
    ------
    UserError
        A modality already exists, the dataset has another split rule or other ids, or the key cannot be read.
    """
    if not 0 <= arguments.test_fraction < 1:
        raise UserError(f"--test-fraction {arguments.test_fraction}: must be at least 0 and below 1")
    rule = SplitRule(arguments.split_seed, arguments.test_fraction)
    pseudonyms = Pseudonyms.read(arguments.pseudonymise)
    pseudonyms.check(arguments.out)
    listed = read_manifest(arguments.out).genetics
    for modality in modalities:
        final = arguments.out / STORE / modality
        if final.exists() and modality in listed:
            raise UserError(f"{final}: already exists; remove this folder to rebuild it")
        if final.exists():
            # The manifest is written last: a run was killed between the two renames.
            print(f"{final}: written by an interrupted run; rebuilding it", file=sys.stderr)
            shutil.rmtree(final)
    # A new dataset gets its split rule when data is written: a failed first run must not bind the dataset to the rule.
    if (arguments.out / NAME).exists():
        claim_splits(arguments.out, rule)
    return rule, pseudonyms


def claim(dataset: Path, rule: SplitRule, pseudonyms: Pseudonyms) -> None:
    """Bind the dataset to a split rule and a form of ids, just before data is written.

    Raises
    ------
    UserError
        Another command has meanwhile bound the dataset to another rule or form of ids.
    """
    claim_splits(dataset, rule)
    pseudonyms.claim(dataset)


def copies_folder(dataset: Path, command: str) -> Path:
    """Return the folder where a command keeps PGEN copies of BGEN and VCF sources until its modality is written."""
    return dataset / f".{command}{COPIES}"


def _sweep(dataset: Path, command: str, modalities: Iterable[str]) -> None:
    """Remove partial files of a killed run of `command`, except parts that a rerun uses."""
    sweep_partials(dataset / "reports", f"{command}*")
    folders = set(dataset.glob(f".{command}.*")) - {dataset / f".{command}{PARTS}", copies_folder(dataset, command)}
    for name in modalities:
        folders |= {dataset / f".{name}.zarr.{state}" for state in ("partial", "unfinished")}
    for path in folders:
        if path.is_dir():
            shutil.rmtree(path)
    # The manifest belongs to all commands: a partial file of a running command is locked and stays.
    sweep_partials(dataset, f"{NAME}*")
    sweep_partials(dataset / STORE, "zarr.json*")


def write_report(dataset: Path, command: str, report: dict[str, Any]) -> None:
    """Write ``reports/COMMAND.json``: settings and counts, no participant ids."""
    with write_aside(dataset / "reports" / f"{command}.json") as file:
        file.write(json.dumps({"command": command, **report}, indent=1) + "\n")


@contextmanager
def ledger(dataset: Path, name: str, columns: Iterable[str]) -> Iterator[io.TextIOWrapper]:
    """Open ``reports/NAME.tsv.gz`` and write the header; equal content gives equal bytes (no time, no name inside).

    Cells of text are written through :func:`preprocess.genetics.text.plain_cell`.

    Yields
    ------
    text file
        For tab-separated lines, each with a newline.
    """
    with (
        write_aside(dataset / "reports" / f"{name}.tsv.gz", "wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=4, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as text,
    ):
        text.write("\t".join(columns) + "\n")
        yield text


def check_space(folder: Path, needed: int) -> None:
    """Check free space before long work.

    Raises
    ------
    UserError
        The disk of `folder` has fewer than `needed` bytes left.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; delete files or choose another --out"
        )


def duration(seconds: float) -> str:
    """Return a rounded duration: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
