"""``python -m preprocess index DATASET``: a dataset of WebDataset tars that another tool wrote, without rewriting them.

Adds what random access needs beside them: a DALI index per tar, the table of all samples, the manifest with checksums.
Tars are read member by member and never unpacked, so ids that they hold stay in them: with ``--pseudonymise`` the table
joins with genetics under pseudonyms, and the tars are as private as they were.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image
from tqdm import tqdm

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.checksums import file_sha256
from mrmfast.formats.image_shards import Member, finalise_images, index_text, tar_samples
from mrmfast.formats.manifest import Shard, SplitRule, claim_splits
from mrmfast.formats.pseudonyms import Pseudonyms, add_argument
from preprocess.images.command import add_split_arguments

IMAGE_EXTENSIONS = ("jpg", "jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``index``."""
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="folder with the tars, anywhere below it")
    parser.add_argument("--tars", default="**/*.tar", metavar="GLOB", help="which of them (default: %(default)s)")
    parser.add_argument(
        "--participant-field",
        default="participant",
        metavar="FIELD",
        help="field of a sample's .json that names the participant (default: %(default)s)",
    )
    parser.add_argument(
        "--participant-pattern",
        metavar="REGEX",
        help="take the participant from the sample's key instead: group (?P<participant>...), from the key's start",
    )
    add_split_arguments(parser)
    add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Index the tars of a folder; return 0.

    Raises
    ------
    UserError
        No tars, a damaged or compressed tar, a sample without a JPEG or without a participant, or pictures that are
        not square and of one size.
    """
    dataset: Path = arguments.dataset
    tars = sorted(path for path in dataset.glob(arguments.tars) if path.is_file())
    if not tars:
        raise UserError(f"{dataset}: no file matches {arguments.tars}; give the folder that holds the tars, or --tars")
    pattern = _pattern(arguments.participant_pattern)
    pseudonyms = Pseudonyms.read(arguments.pseudonymise)
    claim_splits(dataset, SplitRule(arguments.split_seed, arguments.test_fraction))
    pseudonyms.check(dataset)
    parts: list[tuple[Shard, list[dict[str, Any]]]] = []
    sides: set[int] = set()
    number = 0
    for path in tqdm(tars, desc="index", unit="tar", disable=None):
        rows: list[dict[str, Any]] = []
        samples: list[list[Member]] = []
        for members, picture, jpeg, metadata in _samples(path):
            sides.add(_side(path, picture, jpeg))
            if len(sides) > 1:
                raise UserError(
                    f"{path}: the picture at byte {picture.offset} is {max(sides)} pixels wide, others {min(sides)}; "
                    "pictures must be of one size: make the dataset with python -m preprocess fundus or pathology"
                )
            participant = _participant(path, picture, metadata, arguments.participant_field, pattern)
            [participant] = pseudonyms.of([participant])
            # A running number, since keys show up in logs and another tool's may hold ids.
            rows.append(
                {"key": f"{number:09d}", "participant": participant, "offset": picture.offset, "size": picture.size}
            )
            samples.append(members)
            number += 1
        if not rows:
            raise UserError(f"{path}: holds no JPEG pictures; leave it out with --tars")
        index = path.with_suffix(".idx")
        with write_aside(index) as file:
            file.write(index_text(samples))
        name, index_name = (str(one.relative_to(dataset)) for one in (path, index))
        parts.append((Shard(name, index_name, path.stat().st_size, len(rows), file_sha256(path)), rows))
    schema = {"jpg": "RGB picture, image_size x image_size"}
    pseudonyms.claim(dataset)
    finalise_images(dataset, parts, image_size=sides.pop(), schema=schema, statistics={"found": number})
    print(f"index: {number} pictures of {len(tars)} tars; {dataset} is a dataset now")
    if pseudonyms.key:
        print("index: the tars themselves still hold the ids they came with: keep the folder private", file=sys.stderr)
    return 0


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"--participant-pattern={text}: {error}; mend the regular expression") from error
    if "participant" not in pattern.groupindex:
        raise UserError(f"--participant-pattern={text}: lacks a group (?P<participant>...); add it")
    return pattern


def _samples(path: Path) -> Iterator[tuple[list[Member], Member, bytes, dict[str, Any]]]:
    """Yield each sample's members, which of them is the picture, its JPEG and its metadata."""
    try:
        with tarfile.open(path, "r:") as tar:
            samples = list(tar_samples(tar))
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a plain, whole tar ({error}); unpack compression, or copy it again") from error
    with open(path, "rb") as file:
        for members in samples:
            found = {member.extension: member for member in members}
            picture = next((found[one] for one in IMAGE_EXTENSIONS if one in found), None)
            if picture is None:
                raise UserError(
                    f"{path}: the sample at byte {members[0].offset} has no .jpg; only JPEG pictures can be streamed"
                )
            try:
                metadata = json.loads(_bytes(file, found["json"])) if "json" in found else {}
            except ValueError as error:
                raise UserError(
                    f"{path}: the .json at byte {found['json'].offset} is damaged ({error}); write the tar again"
                ) from None
            yield members, picture, _bytes(file, picture), metadata if isinstance(metadata, dict) else {}


def _bytes(file: IO[bytes], member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def _side(path: Path, member: Member, picture: bytes) -> int:
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            width, height = opened.size
            kind = opened.format
    except OSError:
        raise UserError(
            f"{path}: the picture at byte {member.offset} is not a readable picture; write the tar again"
        ) from None
    if kind != "JPEG" or width != height:
        raise UserError(
            f"{path}: the picture at byte {member.offset} is a {kind} of {width} x {height}; "
            "square JPEGs are needed: make the dataset with python -m preprocess fundus or pathology"
        )
    return width


def _participant(
    path: Path, member: Member, metadata: dict[str, Any], field: str, pattern: re.Pattern[str] | None
) -> str:
    if pattern is not None:
        found = pattern.match(member.name.rpartition("/")[2].partition(".")[0])
        if found:
            return found["participant"]
        raise UserError(
            f"{path}: a key does not match --participant-pattern; mend the pattern (sample at byte {member.offset})"
        )
    if metadata.get(field) is None:
        raise UserError(
            f"{path}: the sample at byte {member.offset} has no field {field!r} in its .json; name another with "
            "--participant-field, or take the participant from keys with --participant-pattern"
        )
    return str(metadata[field])
