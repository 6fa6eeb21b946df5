"""``python -m preprocess index DATASET``: makes a dataset of the WebDataset tars of another tool, unchanged.

The command writes the files for random access: a DALI index per tar, the table of all samples, and the manifest with
checksums. The tars are read member by member and are never unpacked or changed. Every JPEG is decoded once: those that
are incomplete or damaged are counted, listed in ``reports/index.json`` and skipped, so that all image
backends see the same images. With ``--pseudonymise`` the table joins with genetics by pseudonyms, but the tars still
contain the original ids.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import simplejpeg
from tqdm import tqdm

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.checksums import file_sha256
from mrmfast.formats.image_shards import Member, finalise_images, index_text
from mrmfast.formats.jpeg import jpeg_fault, jpeg_orientation
from mrmfast.formats.manifest import Shard, claim_splits
from mrmfast.formats.pseudonyms import Pseudonyms, add_argument
from preprocess.images.foreign_tar import IMAGE_EXTENSIONS, TarImage, images_of, read_members
from preprocess.images.run import STATUS_UNREADABLE
from preprocess.images.source_table import sources_path, write_sources
from preprocess.splits import add_split_arguments, split_rule


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
    parser.add_argument(
        "--image-field",
        action="append",
        metavar="EXTENSION",
        help="extension of an image member, such as left.jpg; repeat it for several images per sample (default: jpg or "
        "jpeg, else every extension that ends so)",
    )
    parser.add_argument(
        "--accept-unreadable",
        action="store_true",
        help="exit with status 0 even if some images are refused",
    )
    add_split_arguments(parser)
    add_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Index the tars of a folder; return 0, or 3 if images were refused.

    Raises
    ------
    UserError
        There is no tar, a tar is damaged or compressed, has no readable JPEG, a sample has no participant, or the
        images are not square or differ in size.
    """
    dataset: Path = arguments.dataset
    tars = sorted(path for path in dataset.glob(arguments.tars) if path.is_file())
    if not tars:
        raise UserError(f"{dataset}: no file matches {arguments.tars}; give the folder that holds the tars, or --tars")
    identify = _Identify(arguments.participant_field, _pattern(arguments.participant_pattern))
    pseudonyms = Pseudonyms.read(arguments.pseudonymise)
    claim_splits(dataset, split_rule(arguments, pseudonyms))
    pseudonyms.check(dataset)
    verdicts = _Verdicts(dataset)
    shards: list[tuple[Shard, list[dict[str, Any]]]] = []
    sources: list[dict[str, str]] = []
    for path in tqdm(tars, desc="index", unit="tar", disable=None):
        shards.append(_index_tar(dataset, path, identify, pseudonyms, verdicts, sources, arguments.image_field))
    samples = sum(shard.samples for shard, _ in shards)
    schema = {extension: "RGB image, image_size x image_size" for extension in sorted(verdicts.extensions)}
    pseudonyms.claim(dataset)
    statistics = {"found": samples + len(verdicts.refused), "unreadable": len(verdicts.refused)}
    verdicts.write_report()
    write_sources(sources_path(dataset, "index"), sources)
    finalise_images(dataset, shards, image_size=verdicts.side, schema=schema, statistics=statistics)
    print(f"index: {samples} images of {len(tars)} tars; {dataset} is now a dataset")
    if pseudonyms.key:
        print("index: the tars still contain the original IDs: keep the folder private", file=sys.stderr)
    verdicts.print_summary()
    return STATUS_UNREADABLE if verdicts.refused and not arguments.accept_unreadable else 0


def _index_tar(
    dataset: Path,
    path: Path,
    identify: _Identify,
    pseudonyms: Pseudonyms,
    verdicts: _Verdicts,
    sources: list[dict[str, str]],
    fields: list[str] | None,
) -> tuple[Shard, list[dict[str, Any]]]:
    """Write the DALI index of a tar; return its manifest entry and its rows of the sample table.

    Keys are running numbers, since keys of another tool may contain ids; `sources` gets what each stands for.
    """
    rows: list[dict[str, Any]] = []
    samples = read_members(path)
    names = Counter(_key_of(members[0]) for members in samples)
    for image in images_of(path, samples, fields):
        if not verdicts.accept(path, image):
            continue
        [participant] = pseudonyms.of([identify(path, image, apart=names[_key_of(image.member)] > 1)])
        key = f"{len(sources):09d}"
        rows.append({"key": key, "participant": participant, "offset": image.member.offset, "size": image.member.size})
        # Names of members may hold ids.
        name = "" if pseudonyms.key else image.member.name
        sources.append({"key": key, "participant": participant, "file": str(path.relative_to(dataset)), "member": name})
    if not rows:
        raise verdicts.no_image(path, samples)
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


def _key_of(member: Member) -> str:
    return member.name[: len(member.name) - len(member.extension) - 1]


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


@dataclass
class _Verdicts:
    """Which images are accepted: complete JPEGs, all square and of one size.

    Attributes
    ----------
    dataset : Path
    side : int
        Common side of all accepted images, pixels; 0 before the first.
    refused : list of dict
        Tar, byte and reason of each refused image.
    extensions : set of str
        Of the accepted images.
    turned : int
        Accepted images with an EXIF orientation.
    """

    dataset: Path
    side: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)
    extensions: set[str] = field(default_factory=set)
    turned: int = 0

    def accept(self, path: Path, image: TarImage) -> bool:
        """Return whether the backends can decode an image; count it if not.

        Raises
        ------
        UserError
            The image is not square, or has another size than the images before.
        """
        fault = jpeg_fault(image.jpeg)
        if fault:
            tar = str(path.relative_to(self.dataset))
            self.refused.append({"tar": tar, "byte": image.member.offset, "reason": fault})
            return False
        height, width, _, _ = simplejpeg.decode_jpeg_header(image.jpeg)
        remedy = "make the dataset with python -m preprocess images, fundus or pathology"
        if height != width:
            raise UserError(
                f"{path}: the image at byte {image.member.offset} is {width} x {height}; "
                f"square JPEGs are needed: {remedy}"
            )
        if self.side and width != self.side:
            raise UserError(
                f"{path}: the image at byte {image.member.offset} is {width} pixels wide, others {self.side}; "
                f"images must be of one size: {remedy}"
            )
        self.side = width
        self.extensions.add(image.member.extension)
        self.turned += jpeg_orientation(image.jpeg) != 1
        return True

    def reasons(self) -> str:
        """Return the counts of refused images by reason."""
        counts = Counter(entry["reason"] for entry in self.refused)
        return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))

    def no_image(self, path: Path, samples: list[list[Member]]) -> UserError:
        """Return the error for a tar without a readable JPEG."""
        others = sorted({member.extension for members in samples for member in members} - {"json"})[:5]
        seen = f"; the members are {', '.join(others)}" if others else ""
        refused = f"; refused: {self.reasons()}" if self.refused else ""
        return UserError(
            f"{path}: holds no JPEG images that can be read{seen}{refused}; exclude it with --tars, or name the images "
            "with --image-field"
        )

    def write_report(self) -> None:
        """Write ``reports/index.json``."""
        with write_aside(self.dataset / "reports" / "index.json") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(json.dumps({"command": "index", "unreadable": self.refused}, indent=1) + "\n")

    def print_summary(self) -> None:
        """Print what differs from stock files."""
        if self.extensions - set(IMAGE_EXTENSIONS):
            print(f"index: the images are the members {', '.join(sorted(self.extensions))}")
        if self.turned:
            print(
                f"index: {self.turned} images have an EXIF orientation; all backends take pixels as they are stored, "
                "not turned"
            )
        if self.refused:
            print(
                f"index: {len(self.refused)} images are refused by all backends and skipped ({self.reasons()}); "
                f"listed in {self.dataset / 'reports' / 'index.json'}",
                file=sys.stderr,
            )


@dataclass(frozen=True)
class _Identify:
    """Finds the participant of a sample in a field of its .json, or by a pattern in its key."""

    field: str
    pattern: re.Pattern[str] | None

    def __call__(self, path: Path, image: TarImage, *, apart: bool) -> str:
        """Return the participant; `apart`: members of this key form several samples."""
        member = image.member
        if self.pattern is not None:
            match = self.pattern.match(member.name.rpartition("/")[2].partition(".")[0])
            participant = match["participant"] if match else None
            if not participant:
                raise UserError(
                    f"{path}: a key does not match --participant-pattern; fix the pattern "
                    f"(sample at byte {member.offset})"
                )
            return _checked(path, member, participant)
        participant = image.metadata.get(self.field)
        if participant is None or participant == "":
            if apart:
                raise UserError(
                    f"{path}: the members of the sample at byte {member.offset} are not neighbours, so WebDataset "
                    "reads several samples; write the tar sorted by name (tar --sort=name)"
                )
            raise UserError(
                f"{path}: the sample at byte {member.offset} has no field {self.field!r} in its .json; name another "
                "with --participant-field, or take the participant from keys with --participant-pattern"
            )
        if isinstance(participant, bool) or not isinstance(participant, str | int | float):
            raise UserError(
                f"{path}: the field {self.field!r} of the sample at byte {member.offset} is not a text or number; "
                "name another with --participant-field"
            )
        return _checked(path, member, str(participant))


def _checked(path: Path, member: Member, participant: str) -> str:
    try:
        participant.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: the participant of the sample at byte {member.offset} is not valid Unicode; write the tar again"
        ) from None
    return participant
