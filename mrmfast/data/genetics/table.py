"""One packed row per participant, all modalities side by side, in a file that the ranks of a node share.

A rank maps the file and reads one stretch of about 6 KB per participant. The pages are the kernel's: one copy however
many ranks map it, evicted rather than killed when memory runs short, and nothing to clean up after SIGKILL (which is
why this is no POSIX shared memory). The folder's name holds the checksums of what is in it; it is built once, by the
first rank that takes the lock, aside and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from mrmfast.atomic import rename_directory
from mrmfast.errors import UserError
from mrmfast.formats.genetics import Encoding

LAYOUT = 1  # changes the folder's name: tables of another layout are never read
ALIGN = 4  # bytes; float32 columns of a row can be viewed in place
ABSENT: dict[Encoding, float] = {"genotype": 0xFF, "binary": 0, "float": np.nan}


@dataclass(frozen=True)
class Columns:
    """Where a modality lies in a joint row.

    Attributes
    ----------
    name : str
    encoding : Encoding
    dtype : dtype
        Of the packed values.
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
        end = -(-columns[-1].stop // ALIGN) * ALIGN
    return columns, end


class GenomeTable:
    """A finished table, mapped.

    Attributes
    ----------
    rows : ndarray of uint8, shape (participants + 1, bytes of a row)
        The last row is that of a participant without genetics, so that index -1 finds it.
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
            # Rows are asked for at random, which defeats read-ahead; begin to read a cold file as a whole.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def locate(self, participants: np.ndarray) -> np.ndarray:
        """Return rows of participants (str, shape (n,)), -1 where unknown; int64, shape (n,)."""
        wanted = encode(participants)
        place = np.minimum(np.searchsorted(self.ids, wanted), len(self.ids) - 1)
        return np.where(self.ids[place] == wanted, self.row_of[place], -1)


def encode(ids: np.ndarray) -> np.ndarray:
    """Return ids as fixed-width UTF-8 bytes, which sort and compare without Python objects."""
    return np.array([str(one).encode() for one in ids.tolist()], dtype=np.bytes_)


def open_table(
    cache: Path,
    digests: Sequence[str],
    arrays: Sequence[tuple[str, Encoding, Any]],
    read_ids: Callable[[str], np.ndarray],
) -> GenomeTable:
    """Map the table of these modalities, building it first where this node has none.

    Parameters
    ----------
    cache : Path
        A folder of this node; every rank of it gives the same.
    digests : sequence of str
        Checksum of each modality.
    arrays : sequence of (name, encoding, array)
        Packed rows; Zarr arrays, read one shard at a time.
    read_ids : callable
        Modality -> its participants' ids, one a row.

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
            with FileLock(cache / f"{final.name}.lock"):
                if not final.exists():
                    _sweep(cache, final)
                    _build(final, arrays, read_ids)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"{cache}: no space left for the packed genetics; free space or set data.cache") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{cache}: cannot be written; set data.cache to a folder of this machine") from error
        raise
    return GenomeTable(final)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _sweep(cache: Path, final: Path) -> None:
    """Remove what killed builders left: their locks are free."""
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
    ids_of = [encode(read_ids(one.name)) for one in columns]
    ids, first, place = np.unique(np.concatenate(ids_of), return_index=True, return_inverse=True)
    # Rows in order of first appearance: where all modalities agree on the order, a shard fills a stretch of the file.
    row_of = np.empty(len(ids), dtype=np.int64)
    row_of[np.argsort(first)] = np.arange(len(ids))
    rows_of = np.split(row_of[place], np.cumsum([len(one) for one in ids_of])[:-1])

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
        # A full disk must raise here: a write to a mapped page without a block is a SIGBUS.
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    with tqdm(total=rows.nbytes, desc="genome store", unit="B", unit_scale=True, disable=None) as bar:
        for number, (one, where, (_, _, array)) in enumerate(zip(columns, rows_of, arrays, strict=True)):
            fill = np.full(one.width, ABSENT[one.encoding], dtype=one.dtype).view(np.uint8)
            rows[~present[:, number], one.start : one.stop] = fill
            step = (getattr(array, "shards", None) or array.shape)[0]
            for start in range(0, len(where), step):
                block = np.ascontiguousarray(array[start : start + step]).view(np.uint8)
                rows[where[start : start + len(block)], one.start : one.stop] = block
                bar.update(block.nbytes)
    rows.flush()
    del rows
    rename_directory(aside, final)
