"""Opens VCF and BCF through htslib (cyvcf2), after checks that htslib does not make.

htslib names duplicate samples on stderr, drops the record in which a file ends, and fails on names that are not UTF-8.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from cyvcf2 import VCF

from mrmfast.errors import UserError
from preprocess.genetics.text import NOT_UTF8

GZIP = b"\x1f\x8b"
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")  # SAM specification, 4.1.2
BGZF_START = BGZF_END[:4]
LARGEST_BLOCK = 1 << 16
LONGEST_LINE = 1 << 28
CONTIG = re.compile(rb"[0-9A-Za-z!$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")  # VCF specification, 1.4.7
FIXED_COLUMNS = 9  # before the samples


def open_vcf(path: Path, *, sites: bool = False, check: bool = False) -> VCF:
    """Open a VCF.

    Parameters
    ----------
    path : Path
    sites : bool
        Skip the genotypes; otherwise the file must have samples.
    check : bool
        Check the columns of every line first; required once before records are read.

    Raises
    ------
    UserError
        The file is unreadable or truncated, holds sites only, or has names that repeat or are not UTF-8.
    """
    try:
        lines = header_lines(path)
        _check_samples(lines[-1:], path)
        is_text = not _is_bcf(path)
        _check_end(path, is_text)
        if check and is_text:
            _check_records(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {NOT_UTF8}") from error
    except (OSError, EOFError, zlib.error, struct.error) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise UserError(f"{path}: cannot be read ({type(error).__name__}); check the path") from error
        raise UserError(f"{path}: is truncated or damaged ({type(error).__name__}); copy the file again") from error
    try:
        reader = VCF(str(path), samples=[]) if sites else VCF(str(path))
    except Exception as error:  # cyvcf2 raises OSError or plain Exception, by kind of damage
        raise UserError(f"{path}: cannot be read as VCF ({type(error).__name__}); check the file") from error
    if not sites and not reader.samples:
        raise UserError(
            f"{path}: has no samples, only sites; give the file with the genotypes (burden accepts this file as "
            "--annotations)"
        )
    return reader


def _check_records(path: Path) -> None:
    """Check the columns of every line of a VCF; the records of a BCF are not checked.

    cyvcf2 ends the process at a record that htslib cannot parse if the header does not declare the record's contig.

    Raises
    ------
    UserError
        A line is no record; the message names the line.
    """
    columns = 0
    with open(path, "rb") as raw, _unpacked(raw) as file:
        for number, line in enumerate(_lines(file), start=1):
            if not columns and line.startswith(b"##"):
                continue
            if not columns and line.startswith(b"#CHROM\t") and (count := line.count(b"\t") + 1) >= FIXED_COLUMNS - 1:
                columns = count
            elif not columns or not _is_record(line, columns):
                what = f"record of {columns} columns" if columns else "header"
                raise UserError(f"{path}: line {number} is damaged (no {what}); correct it, or copy the file again")


def _is_record(line: bytes, columns: int) -> bool:
    """Whether a line is a record; without samples, further columns do not matter.

    Raises
    ------
    UnicodeDecodeError
        A column before INFO is not UTF-8.
    """
    count = line.count(b"\t") + 1
    if count < FIXED_COLUMNS - 1 or (columns > FIXED_COLUMNS and count != columns):
        return False
    fields = line.split(b"\t", FIXED_COLUMNS - 2)[: FIXED_COLUMNS - 2]
    chromosome, position, _, reference, alternative, *_ = fields
    b"\t".join(fields).decode()
    return bool(CONTIG.fullmatch(chromosome)) and position.isdigit() and bool(reference) and bool(alternative)


def header_lines(path: Path) -> list[bytes]:
    """Read the lines of the header of a VCF or BCF; the last one names the columns."""
    with open(path, "rb") as raw, _unpacked(raw) as file:
        start = file.read(9)
        if start[:3] == b"BCF":
            text = file.read(min(struct.unpack("<I", start[5:9])[0], LONGEST_LINE)).rstrip(b"\0")
            return [line for line in text.split(b"\n") if line]
        first = start + file.readline(LONGEST_LINE)
        return [first.rstrip(b"\r\n"), *(line.rstrip(b"\r\n") for line in takewhile(_is_header, _lines(file)))]


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(LONGEST_LINE):
        yield line


def _is_header(line: bytes) -> bool:
    return line.startswith(b"#")


def _unpacked(raw: IO[bytes]) -> IO[bytes]:
    packed = raw.read(2) == GZIP
    raw.seek(0)
    return gzip.open(raw, "rb") if packed else raw  # type: ignore[return-value]


def _is_bcf(path: Path) -> bool:
    with open(path, "rb") as raw, _unpacked(raw) as file:
        return file.read(3) == b"BCF"


def _check_samples(columns: list[bytes], path: Path) -> None:
    """Refuse names that repeat or are not UTF-8; htslib would print the name, or fail.

    Raises
    ------
    UserError
    UnicodeDecodeError
    """
    names = (columns or [b""])[0].split(b"\t")[FIXED_COLUMNS:]
    repeated = sum(count > 1 for count in Counter(names).values())
    if repeated:
        raise UserError(f"{path}: {repeated} sample names occur more than once; make them unique")
    b"\t".join(names).decode()


def _check_end(path: Path, is_text: bool) -> None:
    """Refuse a file that ends within a line or a block of bgzip: htslib would read it without an error.

    Raises
    ------
    UserError
    OSError, EOFError, zlib.error
        The compressed data end early.
    """
    with open(path, "rb") as file:
        start = file.read(16)
        if start[:4] == BGZF_START and start[12:14] == b"BC":
            file.seek(max(0, path.stat().st_size - LARGEST_BLOCK - len(BGZF_END)))
            tail = file.read()
            if not tail.endswith(BGZF_END):
                raise UserError(f"{path}: is truncated (no bgzip end mark); copy the file again")
            last = _last_byte_of_bgzf(tail[: -len(BGZF_END)])
        elif start[:2] == GZIP:
            last = b""
            with gzip.open(path, "rb") as unpacked:
                while chunk := unpacked.read(1 << 20):
                    last = chunk[-1:]
        else:
            file.seek(-1, 2)
            last = file.read()
    if is_text and last not in (b"\n", None):
        with open(path, "rb") as raw, _unpacked(raw) as text:
            lines = sum(1 for _ in text)
        raise UserError(
            f"{path}: line {lines} is damaged (it has no end, so the file is truncated); copy the file again (if it is "
            "complete, add a line end)"
        )


def _last_byte_of_bgzf(tail: bytes) -> bytes | None:
    """Return the last byte of the text in the last blocks of a bgzip file; None if no block can be told."""
    start = len(tail)
    while (start := tail.rfind(BGZF_START, 0, start)) >= 0:
        try:
            text = gzip.decompress(tail[start:])
        except (OSError, EOFError, zlib.error):  # these bytes occur within a block too
            continue
        if text:
            return text[-1:]
    return None


def read_records(reader: VCF, path: Path) -> Iterator[Any]:
    """Iterate over the records of an open VCF.

    Raises
    ------
    UserError
        A record is damaged; the message names the line.
    """
    number = 0
    stream = iter(reader)
    while True:
        try:
            record = next(stream)
            _ = record.FILTER  # decoded here, because it may not be UTF-8 in a BCF
        except StopIteration:
            return
        except Exception as error:  # cyvcf2 raises plain Exception for errors of htslib
            location = location_of(number, path)
            raise UserError(
                f"{path}: {location} is damaged ({type(error).__name__}); correct it, or copy the file again"
            ) from error
        yield record
        number += 1


def location_of(done: int, path: Path) -> str:
    """Return the number of the line after `done` records, or the number of the record in a BCF."""
    # Header lines are counted in the file: the header that htslib returns has extra lines.
    return f"record {done + 1}" if _is_bcf(path) else f"line {len(header_lines(path)) + done + 1}"
