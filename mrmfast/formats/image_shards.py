"""Image shards: plain WebDataset tars, a DALI index beside each, and one columnar table of all samples.

Documented in ``docs/formats.md``. Stock ``webdataset`` reads the tars, stock DALI reads tar + ``.idx``, stock ``zarr``
reads ``images/index.zarr`` (:mod:`mrmfast.formats.sample_table`).
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.checksums import file_sha256
from mrmfast.formats.manifest import Shard, updating
from mrmfast.formats.masks import mask_channels, mask_extension
from mrmfast.formats.sample_table import INDEX, write_table

DALI_INDEX_VERSION = "v1.2"


@dataclass(frozen=True)
class Sample:
    """One image on its way into a shard.

    Attributes
    ----------
    key : str
        WebDataset key; a running number, never a participant id (keys show up in logs).
    jpeg : bytes
        The encoded image.
    participant : str
        Whose image it is; joins with the genetics.
    metadata : dict
        Further JSON fields (eye, slide, source size, ...).
    masks : dict of str to bytes
        Name -> PNG, 8 bits a channel, grey, RGB or RGBA without palette, one channel per structure: 255 where nothing
        is known. The mask called ``mask`` becomes ``KEY.mask.png``, another ``KEY.NAME.mask.png``.
    """

    key: str
    jpeg: bytes
    participant: str
    metadata: dict[str, Any]
    masks: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Member:
    """One file of a sample inside a tar: extension (after the first dot), where its bytes are, its whole name."""

    extension: str
    offset: int
    size: int
    name: str


# As stock WebDataset: what it skips, and how it splits a name at the first dot of the last part.
_SKIPPED = re.compile(r"__[^/]*__($|/)")
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


def tar_samples(tar: tarfile.TarFile) -> Iterator[list[Member]]:
    """Yield the members of each sample, in the order of the tar.

    As in WebDataset, a sample is a run of files whose names are equal up to the first dot of the last part. Names
    without a dot and names that begin with a dot (``._0000.jpg`` of macOS) are skipped. Unlike WebDataset, this also
    holds inside folders.

    Raises
    ------
    tarfile.TarError
        The tar is damaged, or a file in it is sparse: its bytes are not where the header says.
    """
    stem, members = "", list[Member]()
    for header in tar:
        match = _KEY.fullmatch(header.name)
        hidden = header.name.rpartition("/")[2].startswith(".")
        if not header.isreg() or match is None or hidden or _SKIPPED.match(header.name):
            continue
        if header.issparse():
            raise tarfile.ReadError("a file in it is sparse")
        if members and match[1] != stem:
            yield members
            members = []
        stem = match[1]
        members.append(Member(match[2].lower(), header.offset_data, header.size, header.name))
    if members:
        yield members


def index_text(samples: Iterable[Sequence[Member]]) -> str:
    """Return DALI's index (``wds2idx`` format) of a tar with these samples; white space in names becomes ``_``."""
    lines = [
        " ".join(f"{_word(m.extension)} {m.offset} {m.size} {_word(m.name)}" for m in members) for members in samples
    ]
    return f"{DALI_INDEX_VERSION} {len(lines)}\n" + "\n".join(lines) + "\n"


def _word(text: str) -> str:
    return re.sub(r"\s", "_", text)


def shard_name(number: int) -> str:
    """Return the path of a shard inside the dataset folder."""
    return f"images/shard-{number:06d}.tar"


def write_shard(dataset: str | Path, number: int, samples: Iterable[Sample]) -> tuple[Shard, list[dict[str, Any]]]:
    """Write one tar and its DALI index, both aside and renamed.

    Parameters
    ----------
    dataset : path
        The dataset folder.
    number : int
        Shard number; decides the file name.
    samples : iterable of Sample
        At least one; the same samples give the same bytes (no clock, user or host in the tar).

    Returns
    -------
    Shard
        The manifest entry.
    list of dict
        Rows for the sample table in order: key, participant, offset, size, and offset, size and channels of each mask.

    Raises
    ------
    UserError
        A mask is not a PNG as :class:`Sample` asks for.
    """
    path = Path(dataset) / shard_name(number)
    rows: list[dict[str, Any]] = []
    written: list[list[Member]] = []
    with write_aside(path, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                members = _add_members(tar, sample)
                written.append(members)
                rows.append(
                    {
                        "key": sample.key,
                        "participant": sample.participant,
                        "offset": members[0].offset,
                        "size": members[0].size,
                        "masks": _mask_rows(sample, members[2:]),
                    }
                )
        assert rows, "a shard holds at least one sample"
    index_path = path.with_suffix(".idx")
    with write_aside(index_path) as file:
        file.write(index_text(written))
    entry = Shard(
        path=shard_name(number),
        index=str(Path(shard_name(number)).with_suffix(".idx")),
        bytes=path.stat().st_size,
        samples=len(rows),
        sha256=file_sha256(path),
    )
    return entry, rows


def _add_members(tar: tarfile.TarFile, sample: Sample) -> list[Member]:
    """Add the files of a sample to a tar; return JPEG, metadata and masks in this order."""
    metadata = {"participant": sample.participant, **sample.metadata}
    payloads = [("jpg", sample.jpeg), ("json", json.dumps(metadata, sort_keys=True).encode())]
    payloads += [(mask_extension(name), sample.masks[name]) for name in sorted(sample.masks)]
    members = []
    for extension, payload in payloads:
        header = tarfile.TarInfo(f"{sample.key}.{extension}")
        header.size = len(payload)
        header.mode = 0o600
        # USTAR headers are one 512-byte block, so the data starts after it.
        offset = tar.offset + tarfile.BLOCKSIZE
        tar.addfile(header, io.BytesIO(payload))
        members.append(Member(extension, offset, len(payload), header.name))
    return members


def _mask_rows(sample: Sample, members: list[Member]) -> dict[str, tuple[int, int, int]]:
    """Return offset, size and channels of each mask."""
    rows = {}
    for name, member in zip(sorted(sample.masks), members, strict=True):
        channels = mask_channels(sample.masks[name])
        if channels is None:
            raise UserError(
                f"sample {sample.key}: mask {name!r} is not a whole PNG of 8 bits a channel in grey, RGB or RGBA; "
                "write it without a palette"
            )
        rows[name] = member.offset, member.size, channels
    return rows


def finalise_images(
    dataset: str | Path,
    parts: list[tuple[Shard, list[dict[str, Any]]]],
    *,
    image_size: int,
    schema: dict[str, str],
    statistics: dict[str, Any],
) -> None:
    """Write the sample table, then the manifest: the moment from which the images exist for readers.

    Parameters
    ----------
    dataset : path
    parts : list
        What :func:`write_shard` returned, in shard order.
    image_size : int
        Side of the stored images, pixels.
    schema, statistics : dict
        Recorded in the manifest as they are.
    """
    rows = [row for _, shard_rows in parts for row in shard_rows]
    columns: dict[str, np.ndarray] = {
        "shard": np.repeat(np.arange(len(parts), dtype=np.int64), [entry.samples for entry, _ in parts]),
        "offset": np.array([row["offset"] for row in rows], dtype=np.int64),
        "size": np.array([row["size"] for row in rows], dtype=np.int64),
        "key": np.array([row["key"] for row in rows], dtype=object),
        "participant": np.array([row["participant"] for row in rows], dtype=object),
    }
    channels = _mask_channels(rows)
    for name in channels:
        places = np.array([row.get("masks", {}).get(name, (0, 0, 0))[:2] for row in rows], dtype=np.int64)
        columns |= {f"masks/{name}/offset": places[:, 0], f"masks/{name}/size": places[:, 1]}
    digest = write_table(Path(dataset) / INDEX, columns, {"masks": channels} if channels else {})
    masks = {mask_extension(name): f"mask, a channel per structure: {count}" for name, count in channels.items()}
    with updating(dataset) as manifest:
        manifest.index_sha256 = digest
        manifest.shards = [entry for entry, _ in parts]
        manifest.image_size = image_size
        manifest.schema = schema | masks
        manifest.statistics = statistics


def _mask_channels(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return the masks of all samples and their channels, by name."""
    channels: dict[str, int] = {}
    for row in rows:
        for name, (_, _, count) in row.get("masks", {}).items():
            if channels.setdefault(name, count) != count:
                raise UserError(
                    f"sample {row['key']}: mask {name!r} has {count} channels, those before it {channels[name]}; "
                    "give all samples the same"
                )
    return dict(sorted(channels.items()))
