"""BGEN 1.1, 1.2 and 1.3 (https://www.chg.ox.ac.uk/~gav/bgen_format/), two alleles per variant.

This module reads BGEN itself, not through a package, for three reasons: an error names the damaged variant, indexing
reads only the headers, and the allele order is never guessed. The file has a first and a second allele; the user states
which allele is the reference (raw UK Biobank: the first; ``plink2 --export bgen-1.x``: the last by default).

See docs/genetics-pitfalls.md#bgen-allele-order.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numcodecs import Zstd

from mrmfast.errors import UserError
from preprocess.genetics.genotypes.base import GenotypeFile, hard_calls_of, on_dosage_grid
from preprocess.genetics.genotypes.companions import read_sample, samples_beside
from preprocess.genetics.genotypes.tables import variant_table

NO_COMPRESSION, ZLIB, ZSTD = range(3)
LAYOUT_1_SCALE = 32768
MISSING_BIT, PLOIDY_BITS = 0x80, 0x3F
LONGEST_TEXT = 1 << 24
LARGEST_SAMPLE = 1 + 63 * 4  # bytes of one sample: its ploidy, and 63 probabilities of 32 bits


class BgenFile(GenotypeFile):
    """A .bgen with its .sample, or with embedded ids; ``ref`` is the first allele, ``alt`` the second.

    Parameters
    ----------
    path : Path
    ids : list of str, optional
        Participants; read from the .sample, or from the file itself, by default.

    Raises
    ------
    UserError
        The file is malformed or truncated, or its samples have no ids.
    """

    has_dosages = True
    bytes_per_genotype = 16  # and about 50 bytes per sample for the variant being decoded

    def __init__(self, path: Path, ids: list[str] | None = None) -> None:
        self.path = path
        with open(path, "rb") as file:
            try:
                self._read_header(file, ids)
                self._index(file)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: a name near byte {file.tell()} is not text in UTF-8; if it is a participant's, state a "
                    "table of samples in UTF-8 with --sample (iconv -f latin1 -t utf-8), otherwise write the file again"
                ) from error
            except struct.error as error:
                raise UserError(f"{path}: is truncated or damaged near byte {file.tell()}; copy it again") from error

    def _read_header(self, file: BinaryIO, ids: list[str] | None) -> None:
        offset, length, self.variant_count, self.samples = struct.unpack("<4I", file.read(16))
        magic = file.read(4)
        if magic not in (b"bgen", b"\0\0\0\0") or length < 20 or offset < length:
            raise UserError(f"{self.path}: is not a BGEN file; make one with plink2 --export bgen-1.2")
        file.seek(4 + length - 4)
        (flags,) = struct.unpack("<I", file.read(4))
        self.compression, self.layout = flags & 3, flags >> 2 & 15
        if self.compression > ZSTD or self.layout not in (1, 2):
            raise UserError(
                f"{self.path}: has layout {self.layout} and compression {self.compression}, which no BGEN version "
                "knows; make the file again with plink2 --export bgen-1.2"
            )
        sample = samples_beside(self.path)
        if ids is not None:
            self.ids = ids
        elif sample.exists():
            self.ids = read_sample(sample)
        elif flags >> 31:
            self.ids = _embedded_ids(file, self.path, self.samples)
        else:
            raise UserError(
                f"{sample}: does not exist and the .bgen names no samples; put the .sample beside it, or state it with "
                "--sample"
            )
        if len(self.ids) != self.samples:
            table = self.path if ids is None and not sample.exists() else sample if ids is None else "--sample"
            raise UserError(
                f"{table}: names {len(self.ids)} samples, {self.path.name} holds {self.samples}; state the .sample of "
                "this file with --sample"
            )
        file.seek(4 + offset)

    def _index(self, file: BinaryIO) -> None:
        """Index the byte ranges of every variant's probabilities without reading the probabilities."""
        size = self.path.stat().st_size
        starts, lengths = [], []
        rows: list[tuple[str, str, str, str, str]] = []
        for _ in range(self.variant_count):
            if self.layout == 1:
                (count,) = struct.unpack("<I", file.read(4))
                if count != self.samples:
                    raise UserError(f"{self._variant(len(rows))} has {count} samples, the header says {self.samples}")
            name, rsid, chromosome = _text(file, 2), _text(file, 2), _text(file, 2)
            (position,) = struct.unpack("<I", file.read(4))
            (alleles,) = struct.unpack("<H", file.read(2)) if self.layout == 2 else (2,)
            labels = [_text(file, 4) for _ in range(alleles)]
            if self.layout == 1 and self.compression == NO_COMPRESSION:
                length = 6 * self.samples
            else:
                (length,) = struct.unpack("<I", file.read(4))
            starts.append(file.tell())
            lengths.append(length)
            if starts[-1] + length > size:
                raise UserError(f"{self._variant(len(rows))} ends after the file does; it is truncated, copy it again")
            named = rsid if rsid not in ("", ".") else name or "."
            # A variant with one allele has no genotypes; variants with more than two are excluded as multi-allelic.
            rows.append((chromosome, named, str(position), labels[0] if labels else ".", ",".join(labels[1:]) or "."))
            file.seek(length, 1)
        if file.tell() != size:
            raise UserError(f"{self.path}: has bytes behind its {self.variant_count} variants; the header is damaged")
        if not rows:
            raise UserError(f"{self.path}: holds no variants")
        self.starts, self.lengths = starts, lengths
        chromosomes, ids, positions, ref, alt = (list(column) for column in zip(*rows, strict=True))
        self.variants = variant_table(self.path, (chromosomes, ids, positions, ref, alt), range(1, len(rows) + 1))

    def _variant(self, number: int) -> str:
        return f"{self.path}: variant {number + 1}"

    def dosages(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.dosages`; rounded to the grid of a .pgen."""
        chosen = slice(None) if samples is None else samples
        out = np.empty((len(columns), self.samples if samples is None else len(samples)), dtype=np.float32)
        with open(self.path, "rb") as file:
            for row, column in enumerate(columns.tolist()):
                file.seek(self.starts[column])
                raw = file.read(self.lengths[column])
                try:
                    out[row] = on_dosage_grid(self._dosage(raw, column)[chosen])
                except (zlib.error, struct.error, ValueError, RuntimeError) as error:
                    raise UserError(
                        f"{self._variant(column)} cannot be decoded ({type(error).__name__}); copy the file again"
                    ) from error
        return out

    def hard_calls(self, columns: np.ndarray, samples: np.ndarray | None = None) -> np.ndarray:
        """See :meth:`.base.GenotypeFile.hard_calls`; calls are derived from dosages as in plink2."""
        return hard_calls_of(self.dosages(columns, samples))

    def _dosage(self, raw: bytes, column: int) -> np.ndarray:
        if self.layout == 1:
            data = _inflate(raw, 6 * self.samples) if self.compression else raw
            triples = np.frombuffer(data, dtype="<u2").reshape(self.samples, 3).astype(np.float64)
            total = triples.sum(axis=1)
            known = total > 0
            expected = (triples[:, 1] + 2 * triples[:, 2]) / np.where(known, total, 1)
            return np.where(known, expected, np.nan)
        if self.compression:
            (length,) = struct.unpack("<I", raw[:4])
            if length > 10 + self.samples * LARGEST_SAMPLE:
                raise ValueError("more bytes than any ploidy needs")
            if self.compression == ZLIB:
                raw = _inflate(raw[4:], length)
            else:
                raw = bytes(Zstd().decode(raw[4:], out=np.empty(length, dtype=np.uint8)))
        samples, alleles, _, _ = struct.unpack("<IHBB", raw[:8])
        ploidy = np.frombuffer(raw, dtype=np.uint8, count=samples, offset=8)
        phased, bits = raw[8 + samples], raw[9 + samples]
        if samples != self.samples or alleles != 2:
            raise UserError(f"{self._variant(column)} has another number of samples or alleles inside; copy it again")
        copies = (ploidy & PLOIDY_BITS).astype(np.int64)
        values = probabilities(raw[10 + samples :], bits, int(copies.sum()))
        if (copies == 2).all():
            first, second = values[0::2], values[1::2]
        else:
            # One value per copy. As in plink2, a haploid call counts double and any other ploidy is missing.
            start = np.cumsum(copies) - copies
            padded = np.append(values, [0.0, 0.0])
            first, second = padded[start], np.where(copies == 2, padded[start + 1], 0)
        expected = 2 - first - second if phased else 2 - 2 * first - second
        expected = np.where(copies == 1, 2 - 2 * first, expected)
        known = (ploidy & MISSING_BIT == 0) & ((copies == 2) | (copies == 1))
        return np.where(known, np.clip(expected, 0, 2), np.nan)


def probabilities(raw: bytes, bits: int, count: int) -> np.ndarray:
    """Decode probabilities of `bits` bits each, lowest bits first.

    A diploid sample has two probabilities. Unphased: two copies of the first allele, and one copy. Phased: the first
    allele on each haplotype.

    Returns
    -------
    ndarray of float64, shape (count,)

    Raises
    ------
    ValueError
        The number of bits or bytes is impossible.
    """
    if not 1 <= bits <= 32 or len(raw) != (count * bits + 7) // 8:
        raise ValueError("probabilities have another length")
    if bits in (8, 16, 32):
        values: np.ndarray = np.frombuffer(raw, dtype=f"<u{bits // 8}").astype(np.float64)
    else:
        spread = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little")[: count * bits]
        values = spread.reshape(-1, bits) @ np.exp2(np.arange(bits))
    return values / (2.0**bits - 1)


def _inflate(raw: bytes, length: int) -> bytes:
    """Decompress exactly `length` bytes; never more, whatever the data say."""
    inflate = zlib.decompressobj()
    data = inflate.decompress(raw, length + 1)
    if len(data) != length:
        raise ValueError("length differs")
    return data


def _text(file: BinaryIO, width: int) -> str:
    (length,) = struct.unpack("<H" if width == 2 else "<I", file.read(width))
    if length > LONGEST_TEXT:
        raise struct.error("no allele is so long")
    text = file.read(length)
    if len(text) != length:
        raise struct.error("truncated")
    return text.decode()


def _embedded_ids(file: BinaryIO, path: Path, samples: int) -> list[str]:
    _, count = struct.unpack("<2I", file.read(8))
    if count != samples:
        raise UserError(f"{path}: names {count} samples and holds {samples}; the header is damaged")
    return [_text(file, 2) for _ in range(count)]
