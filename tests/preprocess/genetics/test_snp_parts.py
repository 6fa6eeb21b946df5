"""The fast half of ``preprocess snps``: compiled loops, shard files written without Zarr, samples excluded."""

from __future__ import annotations

import io

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from mrmfast.errors import UserError
from mrmfast.formats.zarr_shard import write_shard
from preprocess.genetics.genotypes import twobit, twobit_cpu
from preprocess.genetics.genotypes.plink1 import read_rows
from preprocess.genetics.snps import parts
from tests.helpers.genetics_cases import all_bytes, opened, people, preprocess, random_calls, unpacked, write_bed


@pytest.mark.parametrize(
    ("variants", "samples"), [(1, 1), (4, 4), (7, 9), (33, 64), (64, 64), (65, 1000), (130, 257), (256, 4096)]
)
def test_compiled_loops_equal_numpy(variants, samples):
    assert twobit_cpu.library() is not None, "no C compiler"
    rng = np.random.default_rng(variants)
    wide = twobit.width(samples)
    raw = rng.integers(0, 256, (variants, wide), dtype=np.uint8)
    flip, chosen = rng.random(variants) < 0.5, twobit.mask(rng.random(samples) < 0.7)
    spaced = np.empty((variants, wide + 5), np.uint8)[:, :wide]
    spaced[:] = raw
    codes, fast = twobit.from_plink1(raw, flip), twobit_cpu.from_plink1(spaced, flip)
    np.testing.assert_array_equal(fast, codes)
    np.testing.assert_array_equal(twobit_cpu.count(fast, chosen), twobit.count(codes, chosen))
    width = twobit.width(variants)
    around = np.full((samples, width + 2), 77, np.uint8)
    rows = np.empty((samples, width), np.uint8)
    twobit.transpose(codes, rows)
    twobit_cpu.transpose(fast, around[:, 1:-1])
    np.testing.assert_array_equal(around[:, 1:-1], rows)
    assert (around[:, [0, -1]] == 77).all(), "bytes beside the rows were written"


def test_rows_of_a_file_are_read_alike_with_and_without_the_compiled_path(tmp_path, monkeypatch):
    raw = np.random.default_rng(0).integers(0, 256, (20, 100), dtype=np.uint8)
    path = tmp_path / "x"
    path.write_bytes(b"abc" + raw.tobytes())
    columns = np.array([3, 4, 19, 0])
    np.testing.assert_array_equal(read_rows(path, 3, 100, columns, 7, 90), raw[columns, 7:90])
    path.write_bytes(path.read_bytes()[:-20])
    for _ in range(2):
        with pytest.raises(Exception, match="became shorter while it was read"):
            read_rows(path, 3, 100, columns, 7, 90)
        monkeypatch.setattr(twobit_cpu, "library", lambda: None)
    np.testing.assert_array_equal(read_rows(path, 3, 100, columns[:2], 7, 90), raw[columns[:2], 7:90])


@pytest.mark.parametrize("zeros", [slice(0, 0), slice(200, 300), slice(0, 1000)])
def test_shard_files_are_zarrs_byte_for_byte(tmp_path, zeros):
    rows = np.random.default_rng(0).integers(0, 9, (2345, 7), dtype=np.uint8)
    rows[zeros] = 0
    array = zarr.create_array(
        tmp_path / "z",
        shape=rows.shape,
        chunks=(100, 7),
        shards=(1000, 7),
        dtype="uint8",
        compressors=[ZstdCodec(level=3, checksum=True)],
    )
    array[:] = rows
    for number in range(3):
        mine = rows[1000 * number : 1000 * (number + 1)]
        file = io.BytesIO()
        size = write_shard(file, np.split(mine, range(200, len(mine), 200)), 100, 10)
        path = tmp_path / "z/c" / str(number) / "0"
        assert file.getvalue() == (path.read_bytes() if path.exists() else b"")
        assert size == len(file.getvalue())


@pytest.mark.parametrize("excluded", ["scattered", "nearly everyone"])
def test_bytes_do_not_depend_on_the_compiler_nor_on_who_lies_between(tmp_path, monkeypatch, excluded):
    """Withdrawn participants lie between the others; of two files the second may have another order."""
    rng = np.random.default_rng(0)
    calls, ids = random_calls(3000, 70), people(3000)
    kept = rng.random(3000) < (0.99 if excluded == "scattered" else 0.2)
    ids = [one if keep else f"-{number}" for number, (one, keep) in enumerate(zip(ids, kept, strict=True), start=1)]
    write_bed(tmp_path / "one.bed", calls, ids)
    options = ("--reference", "a2", "--stride", 1)
    preprocess("snps", tmp_path / "one.bed", *options, "--out", tmp_path / "d")
    expected = np.where(calls < 0, 3, calls)[kept]
    np.testing.assert_array_equal(unpacked(opened(tmp_path / "d", "snps")), expected)
    # One chunk at a time, and in NumPy.
    monkeypatch.setattr(parts, "participants_at_once", lambda *_: 1024)
    monkeypatch.setattr(twobit_cpu, "library", lambda: None)
    preprocess("snps", tmp_path / "one.bed", *options, "--out", tmp_path / "e")
    assert all_bytes(tmp_path / "d") == all_bytes(tmp_path / "e")
    monkeypatch.undo()
    order = rng.permutation(3000)
    write_bed(tmp_path / "two/chr1.bed", calls[:, :33], ids)
    others = {"chromosome": ["2"] * 37, "sid": [f"other{number}" for number in range(37)]}
    write_bed(tmp_path / "two/chr2.bed", calls[order, 33:], [ids[one] for one in order], **others)
    preprocess("snps", tmp_path / "two", *options, "--out", tmp_path / "f")
    np.testing.assert_array_equal(unpacked(opened(tmp_path / "f", "snps")), expected)


def test_participants_without_any_copy_are_read_back(tmp_path):
    """A shard of zeros has no file, as Zarr would have it."""
    calls = np.zeros((1500, 9), np.int8)
    calls[1300:, 3] = 1
    write_bed(tmp_path / "x.bed", calls, people(1500))
    for name, changed in (("some", calls), ("none", np.zeros_like(calls))):
        write_bed(tmp_path / "x.bed", changed, people(1500))
        preprocess("snps", tmp_path / "x.bed", "--reference", "a2", "--stride", 1, "--out", tmp_path / name)
        np.testing.assert_array_equal(unpacked(opened(tmp_path / name, "snps")), changed)


def test_too_little_memory_for_one_chunk_is_said():
    assert parts.participants_at_once(100_000, 7854, 64 << 20) == 11 * 1024
    assert parts.participants_at_once(100_000, 87_000, 64 << 20) == 1024
    with pytest.raises(UserError, match="--memory: 90000 SNPs of 1024 participants take 65 MB per worker"):
        parts.participants_at_once(100_000, 90_000, 64 << 20)
