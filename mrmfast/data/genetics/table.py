"""One packed row per participant, all modalities side by side, in a file that the ranks of a node share.

A rank maps the file and reads about 6 KB of consecutive bytes per participant. The pages belong to the kernel's page
cache: all ranks share one copy, the kernel evicts pages when memory runs short, and SIGKILL leaves nothing to clean up.
POSIX shared memory has none of these properties. The folder's name contains the checksums of its content. The first
rank that takes the lock builds the folder under another name and renames it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from mrmfast.arithmetic import ceil_div
from mrmfast.atomic import rename_directory
from mrmfast.errors import UserError
from mrmfast.formats.genetics import Encoding

LAYOUT = 1  # changes the folder's name: tables of another layout are never read
ALIGN = 4  # bytes; float32 columns of a row can be viewed in place
ABSENT: dict[Encoding, float] = {"genotype": 0xFF, "binary": 0, "float": np.nan}


@dataclass(frozen=True)
class Columns:
    """The columns of a modality in a joint row.

    Attributes
    ----------
    name : str
    encoding : Encoding
    dtype : dtype
        Type of the packed values.
    width : int
        Packed values per row.
    start : int
        First byte of the joint row.
    """

    name: str
    encoding: Encoding
    dtype: np.dtype[Any]
    width: int
    start: int

    @property
    def stop(self) -> int:
        """One past the last byte."""
        return self.start + self.width * self.dtype.itemsize


def lay_out(arrays: Sequence[tuple[str, Encoding, Any]]) -> tuple[list[Columns], int]:
    """Place the packed rows of modalities side by side.

    Parameters
    ----------
    arrays : sequence of (name, encoding, array)
        The array has the dtype and, on axis 1, the width of the packed rows.

    Returns
    -------
    list of Columns
    int
        Bytes of a joint row.
    """
    columns, end = [], 0
    for name, encoding, array in arrays:
        columns.append(Columns(name, encoding, np.dtype(array.dtype), array.shape[1], end))
        end = ceil_div(columns[-1].stop, ALIGN) * ALIGN
    return columns, end


class GenomeTable:
    """A complete table, mapped into memory.

    Attributes
    ----------
    rows : ndarray of uint8, shape (participants + 1, bytes of a row)
        The last row (index -1) belongs to participants without genetics.
    present : ndarray of bool, shape (participants + 1, modalities)
    ids : ndarray of bytes, shape (participants,)
        UTF-8, sorted.
    row_of : ndarray of int64, shape (participants,)
        Row of each of `ids`.
    """

    def __init__(self, folder: Path) -> None:
        self.rows = np.load(folder / "rows.npy", mmap_mode="r")
        self.present = np.load(folder / "present.npy", mmap_mode="r")
        self.ids = np.load(folder / "ids.npy", mmap_mode="r")
        self.row_of = np.load(folder / "row_of.npy", mmap_mode="r")
        with open(folder / "rows.npy", "rb") as file:
            # Random reads defeat read-ahead, so the kernel is asked to read the whole file.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def locate(self, participants: np.ndarray) -> np.ndarray:
        """Return rows of participants (str, shape (n,)), -1 where unknown; int64, shape (n,)."""
        ids = encode(participants)
        index = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[index] == ids, self.row_of[index], -1)


def encode(ids: np.ndarray) -> np.ndarray:
    """Return ids as fixed-width UTF-8 bytes, which sort and compare without Python objects."""
    return np.array([str(name).encode() for name in ids.tolist()], dtype=np.bytes_)


def open_table(
    cache: Path,
    digests: Sequence[str],
    arrays: Sequence[tuple[str, Encoding, Any]],
    read_ids: Callable[[str], np.ndarray],
) -> GenomeTable:
    """Map the table of these modalities; build it first if this node has none.

    Parameters
    ----------
    cache : Path
        A folder of this node, the same for all of its ranks.
    digests : sequence of str
        Checksum of each modality.
    arrays : sequence of (name, encoding, array)
        Packed rows; Zarr arrays, read one shard at a time.
    read_ids : callable
        Modality -> its participants' ids, one per row.

    Raises
    ------
    UserError
        The cache cannot be written, or is full.
    """
    key = hashlib.sha256("\n".join([str(LAYOUT), *digests]).encode()).hexdigest()
    final = cache / f"genome-{key}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not final.exists():
            # The lock alone would try for ever where no file can be made, as in /proc.
            with tempfile.TemporaryFile(dir=cache):
                pass
            with FileLock(cache / f"{final.name}.lock"):
                if not final.exists():
                    _sweep(cache, final)
                    _build(final, arrays, read_ids)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"{cache}: no space left for the packed genetics; free space or set data.cache") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            raise UserError(f"{cache}: cannot be written; set data.cache to a folder of this machine") from error
        raise
    return GenomeTable(final)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _sweep(cache: Path, final: Path) -> None:
    """Remove incomplete tables of killed processes, whose locks are free."""
    for path in cache.glob(".genome-*.partial"):
        if path == _aside(final):
            shutil.rmtree(path)
            continue
        try:
            with FileLock(cache / f"{path.name[1:].removesuffix('.partial')}.lock", timeout=0):
                shutil.rmtree(path)
        except Timeout:
            pass  # another dataset's table is being built


def _build(final: Path, arrays: Sequence[tuple[str, Encoding, Any]], read_ids: Callable[[str], np.ndarray]) -> None:
    columns, stride = lay_out(arrays)
    ids_of = [encode(read_ids(modality.name)) for modality in columns]
    ids, first, inverse = np.unique(np.concatenate(ids_of), return_index=True, return_inverse=True)
    # Rows in order of first appearance: if all modalities have the same order, a shard fills consecutive rows.
    row_of = np.empty(len(ids), dtype=np.int64)
    row_of[np.argsort(first)] = np.arange(len(ids))
    rows_of = np.split(row_of[inverse], np.cumsum([len(part) for part in ids_of])[:-1])

    aside = _aside(final)
    aside.mkdir(mode=0o700)
    present = np.zeros((len(ids) + 1, len(columns)), dtype=bool)
    for number, where in enumerate(rows_of):
        present[where, number] = True
    np.save(aside / "ids.npy", ids)
    np.save(aside / "row_of.npy", row_of)
    np.save(aside / "present.npy", present)
    rows = np.lib.format.open_memmap(aside / "rows.npy", mode="w+", dtype=np.uint8, shape=(len(ids) + 1, stride))
    with open(aside / "rows.npy", "rb+") as file:
        # On a full disk this raises; a write to a mapped page without a block would be a SIGBUS.
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    with tqdm(total=rows.nbytes, desc="genome store", unit="B", unit_scale=True, disable=None) as bar:
        for number, (modality, where, (_, _, array)) in enumerate(zip(columns, rows_of, arrays, strict=True)):
            fill = np.full(modality.width, ABSENT[modality.encoding], dtype=modality.dtype).view(np.uint8)
            rows[~present[:, number], modality.start : modality.stop] = fill
            step = (getattr(array, "shards", None) or array.shape)[0]
            for start in range(0, len(where), step):
                block = np.ascontiguousarray(array[start : start + step]).view(np.uint8)
                rows[where[start : start + len(block)], modality.start : modality.stop] = block
                bar.update(block.nbytes)
    rows.flush()
    del rows
    rename_directory(aside, final)
