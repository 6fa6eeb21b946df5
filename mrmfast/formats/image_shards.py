"""Image shards: plain WebDataset tars, a DALI index beside each, and one columnar table of all samples.

Writer and reader live together so that the format has one home. Documented in ``docs/formats.md``. Stock
``webdataset`` reads the tars, stock DALI reads tar + ``.idx``, stock ``zarr`` reads ``images/index.zarr``.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from mrmfast.atomic import rename_directory, write_aside
from mrmfast.errors import ClosedError, UserError
from mrmfast.formats.checksums import file_sha256, seal
from mrmfast.formats.manifest import Shard, updating

DALI_INDEX_VERSION = "v1.2"
INDEX = "images/index.zarr"
# Rows of the sample table per chunk and per shard file: a few object-store reads even for millions of images.
CHUNK_ROWS, SHARD_ROWS = 65_536, 1_048_576


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
    """

    key: str
    jpeg: bytes
    participant: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class SampleTable:
    """All samples of a dataset, one row each, in shard order.

    Attributes
    ----------
    shard, offset, size : ndarray of int64, shape (samples,)
        Which shard, and where in it the JPEG bytes are.
    key, participant : ndarray of str, shape (samples,)
    """

    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    key: np.ndarray
    participant: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)


@dataclass(frozen=True)
class Member:
    """One file of a sample inside a tar: extension (after the first dot), where its bytes are, its whole name."""

    extension: str
    offset: int
    size: int
    name: str


def tar_samples(tar: tarfile.TarFile) -> Iterator[list[Member]]:
    """Yield the members of each sample, in the order of the tar.

    As in WebDataset, a sample is a run of files whose names are equal up to the first dot of the last part.
    """
    stem, members = "", list[Member]()
    for header in tar:
        if not header.isfile():
            continue
        folder, _, name = header.name.rpartition("/")
        base, _, extension = name.partition(".")
        if members and f"{folder}/{base}" != stem:
            yield members
            members = []
        stem = f"{folder}/{base}"
        members.append(Member(extension.lower(), header.offset_data, header.size, header.name))
    if members:
        yield members


def index_text(samples: Iterable[Sequence[Member]]) -> str:
    """Return DALI's index (``wds2idx`` format) of a tar with these samples."""
    lines = [" ".join(f"{m.extension} {m.offset} {m.size} {m.name}" for m in members) for members in samples]
    return f"{DALI_INDEX_VERSION} {len(lines)}\n" + "\n".join(lines) + "\n"


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
        Rows for the sample table (key, participant, offset, size), in order.
    """
    path = Path(dataset) / shard_name(number)
    rows: list[dict[str, Any]] = []
    written: list[list[Member]] = []
    with write_aside(path, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                metadata = {"participant": sample.participant, **sample.metadata}
                members = []
                for extension, payload in (
                    ("jpg", sample.jpeg),
                    ("json", json.dumps(metadata, sort_keys=True).encode()),
                ):
                    header = tarfile.TarInfo(f"{sample.key}.{extension}")
                    header.size = len(payload)
                    header.mode = 0o600
                    # USTAR headers are one 512-byte block, so the data starts there.
                    offset = tar.offset + tarfile.BLOCKSIZE
                    tar.addfile(header, io.BytesIO(payload))
                    members.append(Member(extension, offset, len(payload), header.name))
                written.append(members)
                rows.append(
                    {
                        "key": sample.key,
                        "participant": sample.participant,
                        "offset": members[0].offset,
                        "size": members[0].size,
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
    digest = write_table(Path(dataset) / INDEX, columns)
    with updating(dataset) as manifest:
        manifest.index_sha256 = digest
        manifest.shards = [entry for entry, _ in parts]
        manifest.image_size = image_size
        manifest.schema = schema
        manifest.statistics = statistics


def write_table(path: Path, columns: dict[str, np.ndarray]) -> str:
    """Write equally long 1-D columns as a sealed Zarr v3 group, aside and renamed; replaces an older table.

    Returns
    -------
    str
        Digest of the table: see :func:`mrmfast.formats.checksums.seal`.
    """
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    write_columns(zarr.open_group(aside, mode="w", zarr_format=3), columns)
    digest = seal(aside)
    if path.exists():
        shutil.rmtree(path)
    rename_directory(aside, path)
    return digest


def write_columns(group: zarr.Group, columns: dict[str, np.ndarray]) -> None:
    """Add 1-D columns to a Zarr group: zstd with checksum, strings as ``vlen-utf8``."""
    for name, values in columns.items():
        length = max(1, len(values))
        chunk = min(CHUNK_ROWS, length)
        array = group.create_array(
            name,
            shape=(len(values),),
            chunks=(chunk,),
            shards=(min(SHARD_ROWS, -(-length // chunk) * chunk),),
            dtype="str" if values.dtype == object else values.dtype,
            compressors=[ZstdCodec(level=3, checksum=True)],
        )
        array[:] = values


def read_sample_table(url: str, store: Store | None = None) -> SampleTable:
    """Read ``images/index.zarr`` of a dataset.

    Parameters
    ----------
    url : str
        Folder of the dataset; its URL for the errors, where `store` is given.
    store : Store, optional
        The dataset's folder on an object store (:meth:`mrmfast.storage.source.DatasetSource.zarr_store`).

    Raises
    ------
    UserError
        The table is missing or damaged, or the object store does not give it.
    ClosedError
        The dataset was closed meanwhile.
    """
    where = f"{url.rstrip('/')}/{INDEX}"
    try:
        group: Any = zarr.open_group(store or url, path=INDEX, mode="r", zarr_format=3)
        columns = {name: np.asarray(group[name][:]) for name in ("shard", "offset", "size", "key", "participant")}
    except (UserError, ClosedError):  # a ValueError and a RuntimeError, but they say themselves what is wrong
        raise
    except (KeyError, FileNotFoundError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}: missing or damaged sample table; run the image preprocessor again") from error
    return SampleTable(**columns)
