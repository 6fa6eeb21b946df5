"""Any genotype file -> shard files of packed SNP codes, in parts, with bounded memory.

Two steps, each with its own parts. *Extract*: a part is a block of variants of all participants, decoded once and
packed variant-major; .bed files need no extraction, because they have this layout. *Pack*: a part is a block of
participants with all SNPs, transposed to sample-major and written as one shard file of the store; the counts of codes
in the training split follow at the end of the file. The folder ``DATASET/.snps.parts`` holds the parts until they move
into the store.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mrmfast.atomic import write_aside
from mrmfast.errors import UserError
from mrmfast.formats.genetics import shard_shape
from mrmfast.formats.zarr_shard import write_shard
from preprocess.genetics.genotypes import GenotypeFile, Genotypes, twobit, twobit_cpu
from preprocess.genetics.genotypes.plink1 import read_rows

VERSION = 2
VARIANTS_PER_TILE = 256  # 256 variants x 16,384 participants are 1 MiB: they stay in the cache while transposed
MOST_VARIANTS = 1024


class PackedFile(GenotypeFile):
    """One part of the extract step: codes of a block of variants, with the participants in stored order."""

    sliced = True

    def __init__(self, path: Path, samples: int) -> None:
        self.path, self.row_bytes = path, twobit.width(samples)

    def hard_calls(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`GenotypeFile.hard_calls`."""
        codes = twobit.unpack(read_rows(self.path, 0, self.row_bytes, columns, 0, self.row_bytes), 4 * self.row_bytes)
        calls = np.where(codes == 3, -1, codes).astype(np.int8)
        return calls if samples is None else calls[:, samples]

    def packed(self, columns: np.ndarray, flip: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """See :meth:`GenotypeFile.packed`; the codes already count the right allele."""
        assert not flip.any(), "flips were applied when the part was written"
        first, last = int(samples.min()) // 4, int(samples.max()) // 4 + 1
        raw = read_rows(self.path, 0, self.row_bytes, columns, first, last)
        return twobit.select(raw, samples - 4 * first)


@dataclass(frozen=True)
class Job:
    """The input that all parts share.

    Attributes
    ----------
    genotypes : Genotypes
    kept : ndarray of int64, shape (SNPs,)
        Rows of ``genotypes.variants``.
    train : ndarray of bool, shape (participants,)
    folder : Path
        Folder of the parts.
    participants_at_once : int
        Number of participants in memory while a part is packed: whole chunks of the store.
    """

    genotypes: Genotypes
    kept: np.ndarray
    train: np.ndarray
    folder: Path
    participants_at_once: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one participant's packed row."""
        return twobit.width(len(self.kept))

    def starts(self) -> range:
        """Return the first participant of every part of the pack step."""
        chunk, chunks_per_shard = shard_shape(len(self.train))
        return range(0, len(self.train), chunk * chunks_per_shard)

    def rows_path(self, start: int) -> Path:
        """Return the path of a part of the pack step."""
        return self.folder / f"rows-{start:010d}"


def participants_at_once(participants: int, snps: int, memory: int) -> int:
    """Return the number of participants to pack at once: whole chunks of the store, within half of `memory`.

    Raises
    ------
    UserError
        One chunk does not fit.
    """
    chunk, chunks_per_shard = shard_shape(participants)
    # Besides the rows, memory may hold a selection of them, or one encoded chunk.
    fits = memory // (3 * twobit.width(snps)) // chunk
    if not fits:
        raise UserError(
            f"--memory: {snps} SNPs of {chunk} participants take {3 * chunk * twobit.width(snps) >> 20} MB per "
            f"worker, {memory >> 20} MB are available; give more --memory, fewer --workers, or fewer SNPs"
        )
    return chunk * min(fits, chunks_per_shard)


def variant_blocks(job: Job, memory: int) -> list[np.ndarray]:
    """Cut the SNPs into blocks of one file each that fit in `memory`; a block holds indices into ``job.kept``."""
    blocks = []
    table = job.genotypes.variants["file"].to_numpy()[job.kept]
    for run in job.genotypes.runs(table):
        file = job.genotypes.files[table[run[0]]]
        per_block = int(np.clip(memory // (file.bytes_per_genotype * len(file.ids)), 1, MOST_VARIANTS))
        blocks += np.split(run, range(per_block, len(run), per_block))
    return blocks


def extract_part(job: Job, task: list[tuple[int, np.ndarray]]) -> None:
    """Extract blocks of variants in turn; `task` holds (first index, indices into ``job.kept``) of each block."""
    for first, indices in task:
        path = job.folder / f"calls-{first:010d}"
        if path.exists():
            continue
        packed = job.genotypes.packed(job.kept[indices], 0, len(job.train))
        with write_aside(path, "wb") as file:
            file.write(packed.data)


def extract_tasks(job: Job, blocks: list[np.ndarray]) -> list[list[tuple[int, np.ndarray]]]:
    """Return one task per block, or one task per file for files that can only be read forwards."""
    tasks: dict[Any, list[tuple[int, np.ndarray]]] = {}
    file_of = job.genotypes.variants["file"].to_numpy()[job.kept]
    for block in blocks:
        number = int(file_of[block[0]])
        key = (number,) if job.genotypes.files[number].sequential else (number, int(block[0]))
        tasks.setdefault(key, []).append((int(block[0]), block))
    return list(tasks.values())


def extracted(job: Job, blocks: list[np.ndarray]) -> Job:
    """Return the job that reads the parts of the extract step instead of the source."""
    samples = len(job.train)
    files: list[GenotypeFile] = [PackedFile(job.folder / f"calls-{block[0]:010d}", samples) for block in blocks]
    table = job.genotypes.variants.iloc[job.kept].reset_index(drop=True)
    sizes = [len(block) for block in blocks]
    table = table.assign(
        file=np.repeat(np.arange(len(blocks)), sizes),
        column=np.concatenate([np.arange(size) for size in sizes]),
        swapped=False,
    )
    everyone = np.arange(samples)
    genotypes = replace(job.genotypes, files=files, rows=[everyone] * len(files), variants=table)
    return replace(job, genotypes=genotypes, kept=np.arange(len(table)))


def pack_part(job: Job, start: int) -> None:
    """Write the shard file of participants start, start + 1, ...: packed rows, then counts of codes."""
    path = job.rows_path(start)
    if path.exists():
        return
    chunk, chunks_per_shard = shard_shape(len(job.train))
    stop = min(start + chunk * chunks_per_shard, len(job.train))
    counts = np.zeros((len(job.kept), 4), dtype=np.int64)

    def blocks() -> Iterator[np.ndarray]:
        for first in range(start, stop, job.participants_at_once):
            rows, added = _pack(job, first, min(first + job.participants_at_once, stop))
            np.add(counts, added, out=counts)
            yield rows

    with write_aside(path, "wb") as file:
        write_shard(file, blocks(), chunk, chunks_per_shard)
        # The counts follow the shard and are cut off when it moves into the store: a part is one file, present or
        # absent.
        file.write(counts.data)


def _pack(job: Job, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return packed rows of participants start..stop and their counts of codes over the training split."""
    genotypes, samples, count = _samples_to_read(job, start, stop)
    rows = np.empty((count, job.row_bytes), dtype=np.uint8)
    counts = np.empty((len(job.kept), 4), dtype=np.int64)
    train = np.zeros(count, dtype=bool)
    train[samples] = job.train[start:stop]
    training = twobit.mask(train)
    for first in range(0, len(job.kept), VARIANTS_PER_TILE):
        tile = slice(first, first + VARIANTS_PER_TILE)
        codes = genotypes.packed(job.kept[tile], 0, count)
        counts[tile] = twobit_cpu.count(codes, training)
        twobit_cpu.transpose(codes, rows[:, first // 4 : first // 4 + twobit.width(len(codes))])
    return (rows if count == stop - start else rows[samples]), counts


def _samples_to_read(job: Job, start: int, stop: int) -> tuple[Genotypes, np.ndarray, int]:
    """Choose the samples to read for participants start..stop; a few more are read if that avoids splitting bytes.

    Transposing whole bytes between the first and the last participant is fast. The rows of withdrawn and unlisted
    samples are excluded afterwards.

    Returns
    -------
    Genotypes
        The participants are the samples to read.
    ndarray of int64, shape (stop - start,)
        Index of each participant among these samples.
    int
        Number of samples; less than twice the participants plus 8.
    """
    rows = [all_rows[start:stop] for all_rows in job.genotypes.rows]
    samples = rows[0]
    first, last = int(samples[0]) // 4 * 4, twobit.width(int(samples[-1]) + 1) * 4
    close = last - first <= 2 * len(samples) + 6 and bool((np.diff(samples) > 0).all())
    if close and all(file.sliced for file in job.genotypes.files) and all(np.array_equal(samples, x) for x in rows):
        rows, samples = [np.arange(first, last)] * len(rows), samples - first
    else:
        samples = np.arange(len(samples))
    return replace(job.genotypes, rows=rows), samples, len(rows[0])


def total_counts(job: Job) -> np.ndarray:
    """Add up the counts of all parts.

    Returns
    -------
    ndarray of int64, shape (SNPs, 4)
        Training participants with code 0, 1, 2, 3 (missing).
    """
    total = np.zeros((len(job.kept), 4), dtype=np.int64)
    for start in job.starts():
        path = job.rows_path(start)
        total += np.fromfile(path, dtype=np.int64, offset=path.stat().st_size - total.nbytes).reshape(total.shape)
    return total


def finished_shards(job: Job) -> Iterator[tuple[Path, int]]:
    """Yield the shard file of every part and its size without the counts; the size is 0 if all rows are zero.

    :meth:`mrmfast.formats.modality_writer.ModalityWriter.adopt_shard` moves the files into the store. After a kill
    between two moves, the rerun writes the missing parts again and removes the incomplete store.
    """
    for start in job.starts():
        path = job.rows_path(start)
        yield path, path.stat().st_size - len(job.kept) * 4 * 8


def claim_folder(job: Job, settings: dict[str, Any], blocks: list[np.ndarray]) -> bool:
    """Create the folder of parts, or empty the folder if its parts belong to other sources or options.

    Returns
    -------
    bool
        Whether parts of an earlier run are used.
    """
    digest = hashlib.sha256(json.dumps([VERSION, settings]).encode())
    for file in job.genotypes.files:
        status = file.path.stat()
        digest.update(f"{file.path.resolve()} {status.st_size} {status.st_mtime_ns}".encode())
    for array in (job.kept, job.train, *job.genotypes.rows, np.array([block[0] for block in blocks])):
        digest.update(np.ascontiguousarray(array).data)
    digest.update("\n".join(job.genotypes.samples.tolist()).encode())
    digest.update(job.genotypes.variants["swapped"].to_numpy()[job.kept].tobytes())
    mark = job.folder / "job"
    if mark.exists() and mark.read_text(encoding="utf-8") == digest.hexdigest():
        return any(job.folder.glob("rows-*")) or any(job.folder.glob("calls-*"))
    shutil.rmtree(job.folder, ignore_errors=True)
    with write_aside(mark) as text:
        text.write(digest.hexdigest())
    return False
