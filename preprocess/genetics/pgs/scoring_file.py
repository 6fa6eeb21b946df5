"""PGS Catalog scoring files, format 1.0 and 2.0: header, columns, and one clean table of rows.

Formats: https://www.pgscatalog.org/downloads/ . Real files mix builds and separators and contain blank and damaged
rows. A file that cannot give the published score raises :class:`UnusableScoreError`; the report lists the file and the
reason.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from preprocess.genetics.genotypes import chromosome_code
from preprocess.genetics.genotypes.tables import LAST_POSITION
from preprocess.genetics.pgs import score_table
from preprocess.genetics.pgs.score_table import FLAGS, UnusableScoreError

BUILDS = {
    "hg18": "NCBI36",
    "ncbi36": "NCBI36",
    "hg19": "GRCh37",
    "grch37": "GRCh37",
    "hg38": "GRCh38",
    "grch38": "GRCh38",
}
NOT_REPORTED = ("", "NR", "NA", "N/A", "NONE", "NAN")
BASES = set("ACGT")
NOT_GIVEN, MALFORMED = -1, -2  # in place of an allele's index
Columns = dict[str, pa.ChunkedArray]
ALIASES = {"reference_allele": "other_allele", "snp": "rsid"}


@dataclass(frozen=True)
class Score:
    """One scoring file, ready to be matched: columns of equal length, well-formed rows only.

    Attributes
    ----------
    name : str
        ``pgs_id`` of the header, or the file's name without suffixes.
    line : ndarray of int32
        1-based data row in the file.
    chromosome : ndarray of int8
        1-22, 23 for X; 0: unknown or another chromosome.
    position : ndarray of int64
        0: unknown in the target's build.
    rsid : ndarray of int64
        The number after ``rs``; 0 where none is given.
    alleles : list of str
        Distinct alleles; `effect` and `other` index this list.
    effect, other : ndarray of int32
        Allele indices; `other` is -1 if the other allele is not given.
    weight : ndarray of float64
    counts : dict
        ``rows``, ``malformed``; ``no_place``: rows with neither a position in the target's build nor an rsID.
    malformed : list of int
        Data row numbers.
    """

    name: str
    path: Path
    line: np.ndarray
    chromosome: np.ndarray
    position: np.ndarray
    rsid: np.ndarray
    alleles: list[str]
    effect: np.ndarray
    other: np.ndarray
    weight: np.ndarray
    counts: dict[str, int]
    malformed: list[int] = field(default_factory=list)


def canonical_build(text: str | None) -> str | None:
    """Return ``GRCh38`` for hg38 and so on; None for no build (absent, blank or NR: not reported)."""
    text = (text or "").strip()
    return None if text.upper() in NOT_REPORTED else BUILDS.get(text.lower(), text)


@dataclass(frozen=True)
class Head:
    """The header and the column names of a scoring file.

    Attributes
    ----------
    header : dict
        Lower-case keys with underscores; format 1.0 (``# PGS ID = ...``) and 2.0 (``#pgs_id=...``) alike.
    columns : list of str
        Lower-case names, aliases resolved.
    lines : int
        Number of lines before the first row.
    """

    header: dict[str, str]
    columns: list[str]
    lines: int


def read_head(path: Path) -> Head:
    """Read the ``#`` lines and the line of column names.

    Raises
    ------
    UnusableScoreError
        The file is not text, is damaged gzip, or is empty.
    """
    header: dict[str, str] = {}
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                if line.startswith("#"):
                    key, separator, value = line.strip("# \t\r\n").partition("=")
                    if separator:
                        header[key.strip().lower().replace(" ", "_")] = value.strip()
                elif line.strip():
                    names = [name.strip().lower() for name in line.rstrip("\r\n").split("\t")]
                    return Head(header, [ALIASES.get(name, name) for name in names], number)
    except (OSError, EOFError, zlib.error) as error:
        raise UnusableScoreError(f"cannot be read ({type(error).__name__}: damaged or not a scoring file)") from error
    raise UnusableScoreError("malformed: holds no column names")


def open_text(path: Path) -> IO[str]:
    """Open a plain or gzip-compressed text file."""
    # Headers and locus names of old files are not always UTF-8; the required columns are checked when they are read.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace")
    return open(path, encoding="utf-8-sig", errors="replace")


def declared_builds(header: dict[str, str]) -> tuple[str | None, str | None]:
    """Return the builds of ``chr_position`` and of ``hm_pos``; None if the header names no build."""
    native = header.get("genome_build") or header.get("original_genome_build")
    return canonical_build(native), canonical_build(header.get("hmpos_build"))


def score_name(path: Path, header: dict[str, str]) -> str:
    """Return the score's id from the header; the file's name without suffixes if none is given (NR: not reported)."""
    name = header.get("pgs_id", "")
    return path.name.removesuffix(".gz").removesuffix(".txt") if name.upper() in NOT_REPORTED else name


def read_score(path: Path, build: str, assumed: str | None = None, head: Head | None = None) -> Score:
    """Read one scoring file for genotypes in `build`.

    The position of a row is ``hm_chr``/``hm_pos`` if ``HmPOS_build`` is the target build, else
    ``chr_name``/``chr_position`` if ``genome_build`` is the target build. Otherwise the row has no position, and the
    rsID decides.

    Parameters
    ----------
    path : Path
    build : str
        Build of the genotypes, e.g. ``GRCh38``.
    assumed : str, optional
        Build of files whose header names no build.
    head : Head, optional
        Head of this file, if already read.

    Raises
    ------
    UnusableScoreError
        The message is the reason why the score is excluded.
    """
    head = head or read_head(path)
    header, columns = head.header, head.columns
    if any(name.startswith("dosage_") for name in columns):
        raise UnusableScoreError("dosage_0/1/2_weight format: weights are not per copy")
    lacking = [name for name in ("effect_allele", "effect_weight") if name not in columns]
    if lacking:
        raise UnusableScoreError(f"malformed: no column {' and no column '.join(lacking)}")
    if len(set(columns)) != len(columns):
        raise UnusableScoreError("malformed: column names repeat")
    raw, line, odd = score_table.read_rows(path, columns, head.lines)
    total = len(line) + len(odd)
    if not total:
        raise UnusableScoreError("malformed: holds no rows")
    for flag in FLAGS:
        if flag not in raw:
            continue
        is_set = score_table.map_text(raw[flag], lambda text: text.upper() in ("TRUE", "1"), bool)
        if flagged := int(is_set.sum()):
            raise UnusableScoreError(
                f"{flagged} of {total} rows are {flag.removeprefix('is_')}: weights are not per copy"
            )
    native, harmonised = declared_builds(header)
    native = native or canonical_build(assumed)
    score = _clean(score_name(path, header), path, (raw, line, odd), native == build, harmonised == build)
    if not len(score.line):
        raise UnusableScoreError(f"malformed: none of {total} rows has an allele (A, C, G, T) and a weight")
    if score.counts["no_place"] == len(score.line):
        raise UnusableScoreError(_why_no_position(raw, native, harmonised, build))
    return score


def _why_no_position(raw: Columns, native: str | None, harmonised: str | None, build: str) -> str:
    """Return why no row has a usable position: the file has no positions, or positions in another build."""
    given = {"chr_position": native or "an unnamed build", "hm_pos": harmonised or "an unnamed build"}
    builds = [name for column, name in given.items() if column in raw and score_table.integers(raw[column]).any()]
    if not builds:
        return "no positions and no rsIDs"
    return f"positions in {' and '.join(builds)}, not {build}, and no rsIDs; use the file harmonised to {build}"


def _clean(
    name: str,
    path: Path,
    read: tuple[Columns, np.ndarray, list[int]],
    use_native: bool,
    use_harmonised: bool,
) -> Score:
    """Choose positions, ids and alleles; a row without an effect allele or a weight is malformed."""
    raw, line, odd = read
    weight = score_table.numbers(raw["effect_weight"])
    alleles, effect, other = _alleles(raw, len(line))
    sources = [("chr_name", "chr_position", use_native), ("hm_chr", "hm_pos", use_harmonised)]
    chromosome, position = _positions(raw, len(line), sources)
    rsid = score_table.rsids(raw["rsid"]) if "rsid" in raw else np.zeros(len(line), dtype=np.int64)
    if use_harmonised and "hm_rsid" in raw:
        harmonised = score_table.rsids(raw["hm_rsid"])
        rsid = np.where(harmonised > 0, harmonised, rsid)
    good = np.isfinite(weight) & (effect >= 0) & (other != MALFORMED)
    malformed = sorted([*odd, *line[~good].tolist()])
    counts = {"rows": len(line) + len(odd), "malformed": len(malformed)}
    counts["no_place"] = int(((position == 0) & (rsid == 0) & good).sum())
    columns = (line, chromosome, position, rsid), (effect, other, weight)
    if not good.all():
        columns = tuple(column[good] for column in columns[0]), tuple(column[good] for column in columns[1])
    return Score(name, path, *columns[0], alleles, *columns[1], counts, malformed)


def _alleles(raw: Columns, rows: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the distinct alleles, and the effect and the other allele of every row as indices into them.

    A row without a valid allele has the index ``NOT_GIVEN`` or ``MALFORMED``. Example: effect alleles G, a, N and other
    alleles A, blank, A are ``["G", "A"]``, [0, 1, MALFORMED] and [1, NOT_GIVEN, 1].

    Several other alleles of one row, joined by "/", are ambiguous: the other allele counts as not given, as in
    pgscatalog.core (``assign_other_allele``), which does not split at any other character: "G, C" is malformed. The
    same rule applies to other alleles that the Catalog infers from Ensembl.
    """
    index_of: dict[str, int] = {}

    def index(text: str) -> int:
        text = text.strip().upper()
        if not text:
            return NOT_GIVEN
        return index_of.setdefault(text, len(index_of)) if set(text) <= BASES else MALFORMED

    def index_of_other(text: str) -> int:
        return NOT_GIVEN if "/" in text else index(text)

    blank = np.full(rows, NOT_GIVEN, dtype=np.int32)
    effect = score_table.map_text(raw["effect_allele"], index, np.int32)
    other, inferred = (
        score_table.map_text(raw[column], index_of_other, np.int32) if column in raw else blank
        for column in ("other_allele", "hm_inferotherallele")
    )
    return list(index_of), effect, np.where((other == NOT_GIVEN) & (inferred >= 0), inferred, other)


def _positions(raw: Columns, rows: int, sources: list[tuple[str, str, bool]]) -> tuple[np.ndarray, np.ndarray]:
    """Return chromosome (int8) and position (int64) of every row; 0 if no source gives both.

    Parameters
    ----------
    sources : list of (column of chromosomes, column of positions, whether its build is the target's)
        Later sources take precedence.
    """
    chromosome, position = np.zeros(rows, dtype=np.int8), np.zeros(rows, dtype=np.int64)
    for chromosome_column, position_column, use in sources:
        if not use or chromosome_column not in raw or position_column not in raw:
            continue
        given = score_table.integers(raw[position_column])
        named = score_table.map_text(raw[chromosome_column], lambda text: bool(text.strip()), bool)
        known = named & (given > 0) & (given <= LAST_POSITION)
        codes = score_table.map_text(raw[chromosome_column], lambda text: chromosome_code(text.strip()), np.int8)
        chromosome[known], position[known] = codes[known], given[known]
    return chromosome, position
