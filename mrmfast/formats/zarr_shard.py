"""Shard files of ``rows`` without Zarr: the same bytes as zarr-python writes, chunk by chunk, in any process.

A preprocessor that has a shard's rows in hand writes them once, where they are made, without holding the interpreter
lock or a whole shard in memory. Layout (Zarr v3, codec ``sharding_indexed``): encoded chunks, consecutive, then
(offset, length) of every chunk as little-endian uint64 and the CRC-32C of that index. A chunk of zeros is not
written, and a shard of nothing else has no file (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

import numpy as np

ZSTD_LEVEL = 3
ABSENT = 2**64 - 1


def write_shard(file: IO[bytes], blocks: Iterable[np.ndarray], rows_per_chunk: int, chunks_per_shard: int) -> int:
    """Write one shard file.

    Parameters
    ----------
    file : binary file
        At its beginning.
    blocks : iterable of ndarray, shape (rows, width)
        Consecutive rows: whole chunks, but for the last block of the last shard.
    rows_per_chunk, chunks_per_shard : int

    Returns
    -------
    int
        Bytes written; 0 where all rows are zeros, and the shard must not exist.
    """
    # Here, because a preprocessor imports them while other threads are packing.
    import google_crc32c
    from numcodecs.zstd import Zstd

    index = np.full((chunks_per_shard, 2), ABSENT, dtype="<u8")
    codec = Zstd(level=ZSTD_LEVEL, checksum=True)
    number = position = 0
    for block in blocks:
        for start in range(0, len(block), rows_per_chunk):
            rows = np.ascontiguousarray(block[start : start + rows_per_chunk])
            if len(rows) < rows_per_chunk:
                rows = np.concatenate([rows, np.zeros((rows_per_chunk - len(rows), rows.shape[1]), rows.dtype)])
            if rows.any():
                encoded = codec.encode(rows)
                file.write(encoded)
                index[number] = position, len(encoded)
                position += len(encoded)
            number += 1
    assert number <= chunks_per_shard, "more rows than a shard takes"
    if not position:
        return 0
    file.write(index.data)
    file.write(google_crc32c.value(index.tobytes()).to_bytes(4, "little"))
    return position + index.nbytes + 4
