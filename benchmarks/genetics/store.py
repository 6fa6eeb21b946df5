"""The packed store: rows gathered and unpacked, bytes a participant, and a store of half a million participants."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from zarr.codecs import BloscCodec

from benchmarks.genetics.dataset import BLOCK, ENCODINGS, SIZES, values, write_store
from benchmarks.harness import Bench, median, python, run
from mrmfast.batch import ModalitySpec
from mrmfast.data.genetics.store import GenomeStore, pack_rows
from mrmfast.ops.genome_unpack import reference, unpack_genome

ROWS = 256
LARGE_PARTICIPANTS = 500_000


def _packed(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: pack_rows(encoding, drawn[name]) for name, encoding in ENCODINGS.items()}


def _modalities() -> tuple[ModalitySpec, ...]:
    return tuple(ModalitySpec(name, encoding, SIZES[name]) for name, encoding in ENCODINGS.items())


def gather(bench: Bench, work: Path, arguments: argparse.Namespace) -> None:
    """256 random rows of 26,909 features from 50,000 participants, against zarr-python int8."""
    participants = 50_000
    write_store(work / "ds", _packed(values(BLOCK, 0)), participants)
    store = GenomeStore.open(str(work / "ds"), cache=str(work / "cache"))
    peer, peer_scores = _write_peer(work / "peer.zarr", store, participants)
    generator = np.random.default_rng(9)
    ids = store.modalities[0].participants

    def draw() -> np.ndarray:
        return generator.integers(0, participants, ROWS)

    def ours_float(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        located = np.repeat(rows[:, None], 3, axis=1)
        parts = tuple(torch.from_numpy(part) for part in store.gather(located))
        return unpack_genome(
            parts, torch.from_numpy(located >= 0), _modalities(), torch.full((sum(SIZES.values()),), 9.0)
        )

    rows = draw()
    got = ours_float(rows)[0].numpy()
    expected = np.concatenate([peer.oindex[rows], peer_scores.oindex[rows]], axis=1).astype(np.float32)
    first, last = SIZES["snps"], SIZES["snps"] + SIZES["pgs"]
    ours_ordered = np.concatenate([got[:, :first], got[:, last:], got[:, first:last]], axis=1)
    bench.gate("gathered and unpacked rows equal zarr-python's", np.array_equal(ours_ordered, expected))
    bench.gate("rows are found by id", np.array_equal(store.locate(ids[rows])[:, 0], rows))

    theirs = median(lambda: (peer.oindex[chosen := draw()], peer_scores.oindex[chosen]), 3)
    packed = median(lambda: store.gather(np.repeat(draw()[:, None], 3, axis=1)), 51)
    floats = median(lambda: ours_float(draw()), 21)
    stride = store.table.rows.shape[1]
    source = np.ones((ROWS, stride), dtype=np.uint8)
    copy = median(lambda: np.copyto(np.empty_like(source), source), 51)
    bench.figure(
        "zarr-python int8 + float32, bitshuffle + zstd, 1,024 rows a chunk: 256 random rows", theirs * 1e3, "ms"
    )
    bench.figure("ours: 256 random rows, packed", packed * 1e3, "ms")
    bench.figure("ours: 256 random rows, unpacked to float32 with mask", floats * 1e3, "ms")
    bench.figure("memory-copy limit: the same bytes, packed and in order", copy * 1e3, "ms")
    bench.figure("packed gather as a multiple of the memory copy", packed / copy, "x")
    on_disk = sum(path.stat().st_size for path in (work / "ds" / "genetics.zarr").rglob("*") if path.is_file())
    theirs_on_disk = sum(path.stat().st_size for path in (work / "peer.zarr").rglob("*") if path.is_file())
    bench.figure("on disk, ours", on_disk / participants, "bytes a participant")
    bench.figure("on disk, zarr-python int8", theirs_on_disk / participants, "bytes a participant")
    bench.bar("256 rows, packed: times faster than zarr-python int8", theirs / packed, ">=", 20)
    bench.bar("256 rows, unpacked to float32: times faster than zarr-python int8", theirs / floats, ">=", 20)
    held = store.table.rows.nbytes / participants
    bench.bar("in memory, bytes a participant (target 6.5 KB)", held, "<=", 6500)


def _write_peer(path: Path, store: GenomeStore, participants: int) -> tuple[Any, Any]:
    """Write what a user of plain Zarr would: int8 features and float32 scores, one row a participant."""
    group = zarr.open_group(path, mode="w", zarr_format=3)
    codec = BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=1)
    width = SIZES["snps"] + SIZES["burden"]
    peer = group.create_array(
        "int8", shape=(participants, width), chunks=(1024, width), dtype="int8", compressors=[codec]
    )
    scores = group.create_array(
        "scores",
        shape=(participants, SIZES["pgs"]),
        chunks=(1024, SIZES["pgs"]),
        dtype="float32",
    )
    fill = torch.full((sum(SIZES.values()),), 9.0)
    for start in range(0, participants, 4096):
        rows = np.arange(start, min(start + 4096, participants))
        located = np.repeat(rows[:, None], 3, axis=1)
        parts = tuple(torch.from_numpy(part) for part in store.gather(located))
        x = reference.unpack_genome(parts, torch.from_numpy(located >= 0), _modalities(), fill)[0].numpy()
        first, last = SIZES["snps"], SIZES["snps"] + SIZES["pgs"]
        peer[start : start + len(rows)] = np.concatenate([x[:, :first], x[:, last:]], axis=1).astype(np.int8)
        scores[start : start + len(rows)] = x[:, first:last]
    return peer, scores


def unpack(bench: Bench, work: Path, arguments: argparse.Namespace) -> None:
    """Unpack 256 rows of 26,909 features to float32 with mask, against NumPy and the reference."""
    drawn = values(ROWS, 1)
    parts = tuple(torch.from_numpy(part) for part in _packed(drawn).values())
    present = torch.from_numpy(np.random.default_rng(0).random((ROWS, 3)) > 0.1)
    fill = torch.randn(sum(SIZES.values()), generator=torch.Generator().manual_seed(0))
    case = (parts, present, _modalities(), fill)
    table = ((np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3).astype(np.float32)

    def numpy_path() -> tuple[np.ndarray, np.ndarray]:
        x = np.empty((ROWS, len(fill)), np.float32)
        observed = np.empty((ROWS, len(fill)), bool)
        start = 0
        for number, (_, encoding, count) in enumerate(_modalities()):
            part, columns = parts[number].numpy(), slice(start, start + count)
            if encoding == "genotype":
                value: np.ndarray = table[part].reshape(ROWS, -1)[:, :count]
                known: Any = value != 3
            elif encoding == "binary":
                value, known = np.unpackbits(part, axis=1, bitorder="little", count=count), True
            else:
                value, known = part, ~np.isnan(part)
            observed[:, columns] = known & present.numpy()[:, number, None]
            x[:, columns] = np.where(observed[:, columns], value, fill.numpy()[columns])
            start += count
        return x, observed

    expected, seen = reference.unpack_genome(*case)
    for name, (x, observed) in {"compiled": unpack_genome(*case), "NumPy": numpy_path()}.items():
        same = np.array_equal(np.asarray(x), expected.numpy()) and np.array_equal(np.asarray(observed), seen.numpy())
        bench.gate(f"unpack: {name} path equals the reference, bit for bit", same)
    ours, numpy_s = median(lambda: unpack_genome(*case), 21), median(numpy_path, 11)
    bench.figure("unpack 256 rows: compiled CPU path", ours * 1e3, "ms")
    bench.figure("unpack 256 rows: NumPy, 256-entry table and unpackbits", numpy_s * 1e3, "ms")
    bench.figure("unpack 256 rows: reference (torch)", median(lambda: reference.unpack_genome(*case), 5) * 1e3, "ms")
    bench.bar("unpack on the CPU: times faster than NumPy", numpy_s / ours, ">=", 2)


def large(bench: Bench, work: Path, arguments: argparse.Namespace) -> None:
    """Write and open half a million participants, each in a process of its own so that its peak is its own."""
    work.mkdir()
    seconds, peak = run(python("-m", "benchmarks.genetics.store", "write", str(work)))
    bench.figure("500,000 participants: write, whole process", seconds, "s")
    bench.bar("500,000 participants: peak memory while writing, GB", peak / 1e9, "<=", 2)
    store = work / "ds" / "genetics.zarr"
    on_disk = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    bench.figure("500,000 participants: on disk", on_disk / 1e9, "GB")
    bench.figure("500,000 participants: on disk", on_disk / LARGE_PARTICIPANTS, "bytes a participant")
    for what in ("first open (builds the node's copy)", "second open (maps it)"):
        seconds, peak = run(python("-m", "benchmarks.genetics.store", "read", str(work)))
        bench.figure(f"500,000 participants: {what}, find every id, read 20 x 256 rows, whole process", seconds, "s")
        bench.figure(f"500,000 participants: {what}, peak resident, shared pages included", peak / 1e9, "GB")
    result = dict(line.split() for line in (work / "read.txt").read_text().splitlines())
    for name, value in result.items():
        bench.figure(f"500,000 participants: {name.replace('_', ' ')}", float(value), "")
    bench.gate("500,000 participants: rows read are rows written", float(result["rows_equal"]) == 1)
    held = float(result["packed_store_bytes"]) / LARGE_PARTICIPANTS
    bench.bar("500,000 participants: packed store, bytes a participant", held, "<=", 6500)


def _write_large(work: Path) -> None:
    drawn = values(2048, 0)
    write_store(work / "ds", _packed(drawn), LARGE_PARTICIPANTS)


def _read_large(work: Path) -> None:
    """Open, find everyone, read random rows; compare some with what was written."""
    start = time.perf_counter()
    store = GenomeStore.open(str(work / "ds"), cache=str(work / "cache"))
    opened = time.perf_counter() - start
    ids = np.array([str(1_000_000 + 7 * number) for number in range(LARGE_PARTICIPANTS)], dtype=object)
    order = np.random.default_rng(0).permutation(LARGE_PARTICIPANTS)
    start = time.perf_counter()
    rows = store.locate(ids[order])
    located = time.perf_counter() - start
    seconds = [_timed(store, rows[first : first + ROWS]) for first in range(0, 20 * ROWS, ROWS)]
    packed = _packed(values(2048, 0))
    equal = np.array_equal(rows[:, 0], order)
    for number in (0, 100, 244):
        chosen = np.random.default_rng(number).permutation(2048)[:256]
        stored = np.arange(number * 2048, number * 2048 + 256)[:, None].repeat(3, axis=1)
        for part, name in zip(store.gather(stored), ENCODINGS, strict=True):
            equal &= np.array_equal(part, packed[name][chosen[: len(part)]])
    anonymous = next(int(s.split()[1]) for s in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in s)
    result = {
        "open_seconds": opened,
        "find_500,000_ids_seconds": located,
        "gather_256_random_rows_median_ms": float(np.median(seconds)) * 1e3,
        "packed_store_bytes": store.table.rows.nbytes,
        "anonymous_memory_of_a_rank_bytes": anonymous * 1024,
        "rows_equal": int(equal),
    }
    (work / "read.txt").write_text("".join(f"{name} {value}\n" for name, value in result.items()))


def _timed(store: GenomeStore, rows: np.ndarray) -> float:
    start = time.perf_counter()
    store.gather(rows)
    return time.perf_counter() - start


if __name__ == "__main__":
    {"write": _write_large, "read": _read_large}[sys.argv[1]](Path(sys.argv[2]))
