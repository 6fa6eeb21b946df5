"""What the four commands share: arguments, the checks of the dataset folder, reports and ledgers."""

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

PARTS = ".parts"  # of the folder with finished parts, after the command's name
COPIES = ".genotypes"  # of the folder with PGEN copies of the source


def add_common_arguments(parser: argparse.ArgumentParser, source: str, keep: bool = True) -> None:
    """Add SRC, --out and the split rule (and --keep) to a command."""
    parser.add_argument("src", metavar="SRC", type=location, help=source)
    parser.add_argument("--out", metavar="DATASET", type=location, required=True, help="dataset folder to write into")
    parser.add_argument("--split-seed", type=int, default=0, help="seed of the train/test rule (default 0)")
    parser.add_argument("--test-fraction", type=float, default=0.2, help="share of participants held out (default 0.2)")
    if keep:
        parser.add_argument("--keep", metavar="FILE", type=Path, help="participant ids to keep, one a line")
    add_argument(parser)


@contextmanager
def writing(arguments: argparse.Namespace, command: str, modalities: Iterable[str]) -> Iterator[None]:
    """Hold the lock of one command on the dataset folder, and remove first what a killed run of it left.

    Raises
    ------
    UserError
        SRC is absent or a place is no local one, or the same command is writing there already.
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
        raise UserError(f"{arguments.out}: another {command} command is writing there; wait for it to end") from error
    try:
        _sweep(arguments.out, command, modalities)
        yield
    finally:
        lock.release()


def check_target(arguments: argparse.Namespace, modalities: Iterable[str]) -> tuple[SplitRule, Pseudonyms]:
    """Check, before any long work, that the modalities can be written; call it inside :func:`writing`.

    Returns
    -------
    SplitRule
    Pseudonyms
        Applied to ids once withdrawals and --keep are dealt with: the split goes by what is stored.

    Raises
    ------
    UserError
        A modality exists already, the dataset has another split rule or other ids, or the key cannot be read.
    """
    if not 0 <= arguments.test_fraction < 1:
        raise UserError(f"--test-fraction {arguments.test_fraction}: give a number from 0 up to, not including, 1")
    rule = SplitRule(arguments.split_seed, arguments.test_fraction)
    pseudonyms = Pseudonyms.read(arguments.pseudonymise)
    pseudonyms.check(arguments.out)
    listed = read_manifest(arguments.out).genetics
    for modality in modalities:
        final = arguments.out / STORE / modality
        if final.exists() and modality in listed:
            raise UserError(f"{final}: exists already; remove that folder to make it anew")
        if final.exists():
            # The manifest comes last: a run was killed between the two renames.
            print(f"{final}: left by an interrupted run; made anew", file=sys.stderr)
            shutil.rmtree(final)
    # A rule is recorded only when there is something to write: a failed first try must not bind the dataset to it.
    if (arguments.out / NAME).exists():
        claim_splits(arguments.out, rule)
    return rule, pseudonyms


def claim(dataset: Path, rule: SplitRule, pseudonyms: Pseudonyms) -> None:
    """Bind the dataset to a split rule and to how ids are written, just before something is written into it.

    Raises
    ------
    UserError
        Another command has bound it otherwise meanwhile.
    """
    claim_splits(dataset, rule)
    pseudonyms.claim(dataset)


def copies_folder(dataset: Path, command: str) -> Path:
    """Return where a command keeps PGEN copies of BGEN and VCF sources until its modality is written."""
    return dataset / f".{command}{COPIES}"


def _sweep(dataset: Path, command: str, modalities: Iterable[str]) -> None:
    """Remove what a killed run of `command` left half written, but not parts that a rerun uses."""
    sweep_partials(dataset / "reports", f"{command}*")
    folders = set(dataset.glob(f".{command}.*")) - {dataset / f".{command}{PARTS}", copies_folder(dataset, command)}
    for name in modalities:
        folders |= {dataset / f".{name}.zarr.{state}" for state in ("partial", "unfinished")}
    for path in folders:
        if path.is_dir():
            shutil.rmtree(path)
    # The manifest belongs to all commands: a partial file of a living one is locked, and stays.
    sweep_partials(dataset, f"{NAME}*")
    sweep_partials(dataset / STORE, "zarr.json*")


def write_report(dataset: Path, command: str, report: dict[str, Any]) -> None:
    """Write ``reports/COMMAND.json``: settings and counts, no ids of people."""
    with write_aside(dataset / "reports" / f"{command}.json") as file:
        file.write(json.dumps({"command": command, **report}, indent=1) + "\n")


@contextmanager
def ledger(dataset: Path, name: str, columns: Iterable[str]) -> Iterator[io.TextIOWrapper]:
    """Open ``reports/NAME.tsv.gz`` and write its header; equal content gives equal bytes (no time, no name inside).

    Yields
    ------
    text file
        Write tab-separated lines, each ended by a newline.
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
            f"{folder}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free space or choose another --out"
        )


def duration(seconds: float) -> str:
    """Say a duration roughly: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
