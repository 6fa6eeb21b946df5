"""``python -m preprocess index DATASET``: makes a dataset of the WebDataset tars of another tool, unchanged.

The command writes the files for random access: a DALI index per tar, the table of all samples, and the manifest with
checksums. The tars are read member by member and are never unpacked or changed. With ``--pseudonymise`` the table joins
with genetics by pseudonyms, but the tars still contain the original ids.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image
from tqdm import tqdm

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.checksums import file_sha256
from mrmfast.formats.image_shards import Member, finalise_images, index_text, tar_samples
from mrmfast.formats.manifest import Shard, claim_splits
from mrmfast.formats.pseudonyms import Pseudonyms, add_argument
from preprocess.images.source_table import sources_path, write_sources
from preprocess.splits import add_split_arguments, split_rule

IMAGE_EXTENSIONS = ("jpg", "jpeg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``index``."""
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="folder with the tars, searched recursively")
    parser.add_argument(
        "--tars", default="**/*.tar", metavar="GLOB", help="which tar files to index (default: %(default)s)"
    )
    parser.add_argument(
        "--participant-field",
        default="participant",
        metavar="FIELD",
        help="field of a sample's .json that names the participant (default: %(default)s)",
    )
    parser.add_argument(
        "--participant-pattern",
        metavar="REGEX",
        help="regular expression for the start of a sample's key, with a group (?P<participant>...); replaces "
        "--participant-field",
    )
    add_split_arguments(parser)
    add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Index the tars of a folder; return 0.

    Raises
    ------
    UserError
        There is no tar, a tar is damaged or compressed, a sample has no JPEG or no participant, or the images are not
        square or differ in size.
    """
    dataset: Path = arguments.dataset
    tars = sorted(path for path in dataset.glob(arguments.tars) if path.is_file())
    if not tars:
        raise UserError(f"{dataset}: no file matches {arguments.tars}; give the folder that holds the tars, or --tars")
    identify = _Identify(arguments.participant_field, _pattern(arguments.participant_pattern))
    pseudonyms = Pseudonyms.read(arguments.pseudonymise)
    claim_splits(dataset, split_rule(arguments, pseudonyms))
    pseudonyms.check(dataset)
    size = _OneSize()
    shards: list[tuple[Shard, list[dict[str, Any]]]] = []
    sources: list[dict[str, str]] = []
    for path in tqdm(tars, desc="index", unit="tar", disable=None):
        shards.append(_index_tar(dataset, path, identify, pseudonyms, size, sources))
    samples = sum(shard.samples for shard, _ in shards)
    schema = {"jpg": "RGB image, image_size x image_size"}
    pseudonyms.claim(dataset)
    write_sources(sources_path(dataset, "index"), sources)
    finalise_images(dataset, shards, image_size=size.pixels, schema=schema, statistics={"found": samples})
    print(f"index: {samples} images of {len(tars)} tars; {dataset} is now a dataset")
    if pseudonyms.key:
        print("index: the tars still contain the original IDs: keep the folder private", file=sys.stderr)
    return 0


def _index_tar(
    dataset: Path,
    path: Path,
    identify: _Identify,
    pseudonyms: Pseudonyms,
    size: _OneSize,
    sources: list[dict[str, str]],
) -> tuple[Shard, list[dict[str, Any]]]:
    """Write the DALI index of a tar; return its manifest entry and its rows of the sample table.

    Keys are running numbers, since keys appear in logs and keys of another tool may contain ids. What each key stands
    for is appended to `sources`.
    """
    rows: list[dict[str, Any]] = []
    samples: list[list[Member]] = []
    for members, image, jpeg, metadata in _samples(path):
        size.check(path, image, jpeg)
        [participant] = pseudonyms.of([identify(path, image, metadata)])
        key = f"{len(sources):09d}"
        rows.append({"key": key, "participant": participant, "offset": image.offset, "size": image.size})
        # Names of members may hold ids.
        name = "" if pseudonyms.key else image.name
        sources.append({"key": key, "participant": participant, "file": str(path.relative_to(dataset)), "member": name})
        samples.append(members)
    if not rows:
        raise UserError(f"{path}: holds no JPEG images; exclude it with --tars")
    index = path.with_suffix(".idx")
    with write_aside(index) as file:
        file.write(index_text(samples))
    entry = Shard(
        path=str(path.relative_to(dataset)),
        index=str(index.relative_to(dataset)),
        bytes=path.stat().st_size,
        samples=len(rows),
        sha256=file_sha256(path),
    )
    return entry, rows


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"--participant-pattern={text}: {error}; fix the regular expression") from error
    if "participant" not in pattern.groupindex:
        raise UserError(f"--participant-pattern={text}: lacks a group (?P<participant>...); add it")
    return pattern


def _samples(path: Path) -> Iterator[tuple[list[Member], Member, bytes, dict[str, Any]]]:
    """Yield each sample's members, the member of the image, the JPEG, and the metadata."""
    try:
        with tarfile.open(path, "r:") as tar:
            samples = list(tar_samples(tar))
    except tarfile.TarError as error:
        raise UserError(
            f"{path}: not a complete, uncompressed tar ({error}); decompress it, or copy it again"
        ) from error
    with open(path, "rb") as file:
        for members in samples:
            by_extension = {member.extension: member for member in members}
            image = next((by_extension[name] for name in IMAGE_EXTENSIONS if name in by_extension), None)
            if image is None:
                raise UserError(
                    f"{path}: the sample at byte {members[0].offset} has no .jpg; only JPEG images can be streamed"
                )
            yield members, image, _bytes(file, image), _metadata(path, file, by_extension.get("json"))


def _metadata(path: Path, file: IO[bytes], member: Member | None) -> dict[str, Any]:
    """Return the fields of a sample's .json; empty if there is no .json or its content is not an object."""
    if member is None:
        return {}
    try:
        metadata = json.loads(_bytes(file, member))
    except ValueError as error:
        raise UserError(
            f"{path}: the .json at byte {member.offset} is damaged ({error}); write the tar again"
        ) from None
    return metadata if isinstance(metadata, dict) else {}


def _bytes(file: IO[bytes], member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


class _OneSize:
    """The common size of all images of a dataset in pixels; 0 before the first image."""

    pixels = 0

    def check(self, path: Path, member: Member, jpeg: bytes) -> None:
        """Compare the size of an image with the images before.

        Raises
        ------
        UserError
            The image is not a JPEG, is not square, or has another size.
        """
        side = _side(path, member, jpeg)
        if self.pixels and side != self.pixels:
            raise UserError(
                f"{path}: the image at byte {member.offset} is {side} pixels wide, others {self.pixels}; "
                "images must be of one size: make the dataset with python -m preprocess fundus or pathology"
            )
        self.pixels = side


def _side(path: Path, member: Member, jpeg: bytes) -> int:
    try:
        with Image.open(io.BytesIO(jpeg)) as header:
            width, height = header.size
            kind = header.format
    except OSError:
        raise UserError(
            f"{path}: the image at byte {member.offset} is not a readable image; write the tar again"
        ) from None
    if kind != "JPEG" or width != height:
        raise UserError(
            f"{path}: the image at byte {member.offset} is a {kind} of {width} x {height}; "
            "square JPEGs are needed: make the dataset with python -m preprocess fundus or pathology"
        )
    return width


@dataclass(frozen=True)
class _Identify:
    """Finds the participant of a sample in a field of its .json, or by a pattern in its key."""

    field: str
    pattern: re.Pattern[str] | None

    def __call__(self, path: Path, member: Member, metadata: dict[str, Any]) -> str:
        if self.pattern is not None:
            match = self.pattern.match(member.name.rpartition("/")[2].partition(".")[0])
            if match:
                return match["participant"]
            raise UserError(
                f"{path}: a key does not match --participant-pattern; fix the pattern (sample at byte {member.offset})"
            )
        if metadata.get(self.field) is None:
            raise UserError(
                f"{path}: the sample at byte {member.offset} has no field {self.field!r} in its .json; name another "
                "with --participant-field, or take the participant from keys with --participant-pattern"
            )
        return str(metadata[self.field])
