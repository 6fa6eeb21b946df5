"""Reads the WebDataset tars of another tool: samples as stock WebDataset groups them, their JPEGs and metadata.

Nothing is unpacked: names, links and modes in a tar have no effect. Sizes of the headers are compared with the file
before anything is read.
"""

from __future__ import annotations

import errno
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mrmfast.errors import UserError
from mrmfast.formats.image_shards import Member, tar_samples

IMAGE_EXTENSIONS = ("jpg", "jpeg")
LARGEST_JPEG, LARGEST_JSON = 256_000_000, 16_000_000  # bytes


@dataclass(frozen=True)
class TarImage:
    """One image of a sample.

    Attributes
    ----------
    member : Member
    jpeg : bytes
    metadata : dict
        The fields of its .json; empty if there is none or its content is not an object.
    """

    member: Member
    jpeg: bytes
    metadata: dict[str, Any]


def read_members(path: Path) -> list[list[Member]]:
    """Return the members of each sample of a tar.

    Raises
    ------
    UserError
        The tar is compressed or damaged, has a name that is not UTF-8, or repeats a member of a sample.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            samples = list(tar_samples(tar))
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, MemoryError) as error:
        detail = str(error) if isinstance(error, tarfile.TarError) else type(error).__name__
        raise _damaged(path, detail) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(path, "a size in it is impossible") from error  # no file can be as long
    size = path.stat().st_size
    for members in samples:
        for member in members:
            _check_member(path, size, member)
        if len({member.extension for member in members}) < len(members):
            raise UserError(
                f"{path}: the sample at byte {members[0].offset} has two members of one extension, which WebDataset "
                "refuses; write the tar again"
            )
    return samples


def _damaged(path: Path, detail: str) -> UserError:
    return UserError(f"{path}: not a complete, uncompressed tar ({detail}); decompress it, or copy it again")


def _check_member(path: Path, size: int, member: Member) -> None:
    if member.size < 0 or member.offset + member.size > size:
        raise UserError(f"{path}: the member at byte {member.offset} reaches beyond the file; copy the tar again")
    try:
        member.name.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: the name of the member at byte {member.offset} is not UTF-8; rename it and write the tar again"
        ) from None


def images_of(path: Path, samples: Sequence[Sequence[Member]], fields: Sequence[str] | None) -> Iterator[TarImage]:
    """Yield the images of all samples; a sample without an image yields none.

    Parameters
    ----------
    path : Path
    samples : sequence of sequence of Member
        From :func:`read_members`.
    fields : sequence of str, optional
        Extensions of the images (``left.jpg``); None: ``jpg`` or ``jpeg``, else every extension that ends so.

    Raises
    ------
    UserError
        A member is too large, or a .json is not JSON.
    """
    with open(path, "rb") as file:
        for members in samples:
            by_extension = {member.extension: member for member in members}
            for extension in _image_extensions(by_extension, fields):
                member = by_extension[extension]
                json_member = by_extension.get(f"{extension.rpartition('.')[0]}.json") or by_extension.get("json")
                jpeg = _bytes(path, file, member, LARGEST_JPEG)
                yield TarImage(member, jpeg, _metadata(path, file, json_member))


def _image_extensions(by_extension: dict[str, Member], fields: Sequence[str] | None) -> list[str]:
    if fields:
        return [field for field in fields if field in by_extension]
    plain = [extension for extension in IMAGE_EXTENSIONS if extension in by_extension]
    dotted = [name for name in by_extension if name.endswith(tuple(f".{end}" for end in IMAGE_EXTENSIONS))]
    return plain[:1] or sorted(dotted)


def _metadata(path: Path, file: IO[bytes], member: Member | None) -> dict[str, Any]:
    if member is None:
        return {}
    try:
        metadata = json.loads(_bytes(path, file, member, LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(
            f"{path}: the .json at byte {member.offset} is damaged ({detail}); write the tar again"
        ) from None
    return metadata if isinstance(metadata, dict) else {}


def _bytes(path: Path, file: IO[bytes], member: Member, limit: int) -> bytes:
    if member.size > limit:
        raise UserError(
            f"{path}: the member at byte {member.offset} has {member.size} bytes, more than {limit}; "
            "remove it from the tar"
        )
    file.seek(member.offset)
    return file.read(member.size)
