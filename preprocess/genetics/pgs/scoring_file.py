"""PGS Catalog scoring files, format 1.0 and 2.0: header, columns, and one clean table of rows.

Formats: https://www.pgscatalog.org/downloads/ ; real files mix builds, separators, blank and damaged rows. A file that
cannot give the published score raises :class:`UnusableScoreError`; its caller lists it with the reason and goes on.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from preprocess.genetics.genotypes.dosages import chromosome_code
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
NOT_AN_ALLELE = "?"
ALIASES = {"reference_allele": "other_allele", "snp": "rsid"}


@dataclass(frozen=True)
class Score:
    """One scoring file, ready to be matched: columns of equal length, well-formed rows only.

    Attributes
    ----------
    name : str
        ``pgs_id`` of the header, else the file's name without its endings.
    line : ndarray of int32
        1-based data row in the file.
    chromosome : ndarray of int8
        1-22, 23 for X; 0: unknown or another chromosome.
    position : ndarray of int64
        0: unknown in the target's build.
    rsid : ndarray of int64
        The number after ``rs``; 0 where none is given.
    alleles : list of str
        What `effect` and `other` index.
    effect, other : ndarray of int32
        `other` is -1 where it is not given.
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
    return None if text.upper() in ("", "NR", "NA") else BUILDS.get(text.lower(), text)


@dataclass(frozen=True)
class Head:
    """What comes before the rows of a scoring file.

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
        Not text, damaged gzip, empty, or without the needed columns.
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
    # Headers and locus names of old files are not always UTF-8; the columns we use are checked when they are read.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace")
    return open(path, encoding="utf-8-sig", errors="replace")


def declared_builds(header: dict[str, str]) -> tuple[str | None, str | None]:
    """Return the builds of ``chr_position`` and of ``hm_pos``; None where the header names none."""
    native = header.get("genome_build") or header.get("original_genome_build")
    return canonical_build(native), canonical_build(header.get("hmpos_build"))


def score_name(path: Path, header: dict[str, str]) -> str:
    """Return the score's id: the header's, else the file's name without ``.txt``, ``.txt.gz``."""
    return header.get("pgs_id") or path.name.removesuffix(".gz").removesuffix(".txt")


def read_score(path: Path, build: str, assumed: str | None = None, head: Head | None = None) -> Score:
    """Read one scoring file for genotypes in `build`.

    A row's place is, in this order: ``hm_chr``/``hm_pos`` if ``HmPOS_build`` is the target's build;
    ``chr_name``/``chr_position`` if ``genome_build`` is; else nowhere, and the rsID decides.

    Parameters
    ----------
    path : Path
    build : str
        Build of the genotypes, e.g. ``GRCh38``.
    assumed : str, optional
        Build of files whose header names none.
    head : Head, optional
        Of this file, if it has been read.

    Raises
    ------
    UnusableScoreError
        With the reason why the score is left out.
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
        raise UnusableScoreError(_why_nowhere(raw, native, harmonised, build))
    return score


def _why_nowhere(raw: dict[str, Any], native: str | None, harmonised: str | None, build: str) -> str:
    """Say why not one row has a place: no positions at all, or positions in another build."""
    given = {"chr_position": native or "an unnamed build", "hm_pos": harmonised or "an unnamed build"}
    builds = [name for column, name in given.items() if column in raw and score_table.integers(raw[column]).any()]
    if not builds:
        return "no positions and no rsIDs"
    return f"positions in {' and '.join(builds)}, not {build}, and no rsIDs; use the file harmonised to {build}"


def _clean(
    name: str,
    path: Path,
    read: tuple[dict[str, pa.ChunkedArray], np.ndarray, list[int]],
    use_native: bool,
    use_harmonised: bool,
) -> Score:
    """Choose places, ids and alleles; rows without an allele or a weight are malformed."""
    raw, line, odd = read
    weight = score_table.numbers(raw["effect_weight"])
    vocabulary: dict[str, int] = {"": -1, NOT_AN_ALLELE: -2}

    def allele(text: str) -> int:
        text = text.strip().upper()
        return vocabulary.setdefault(text if set(text) <= set("ACGT") else NOT_AN_ALLELE, len(vocabulary) - 2)

    blank = np.full(len(line), -1, dtype=np.int32)
    effect, other, inferred = (
        score_table.map_text(raw[column], allele, np.int32) if column in raw else blank
        for column in ("effect_allele", "other_allele", "hm_inferotherallele")
    )
    # The Catalog infers other alleles from Ensembl; several joined by "/" (here: not an allele) tell nothing certain.
    other = np.where((other == -1) & (inferred >= 0), inferred, other)

    chromosome = np.zeros(len(line), dtype=np.int8)
    position = np.zeros(len(line), dtype=np.int64)
    sources = [("chr_name", "chr_position", use_native), ("hm_chr", "hm_pos", use_harmonised)]
    for chromosome_name, position_name, use in sources:  # later sources win
        if not use or chromosome_name not in raw or position_name not in raw:
            continue
        place = score_table.integers(raw[position_name])
        named = score_table.map_text(raw[chromosome_name], lambda text: bool(text.strip()), bool)
        known = named & (place > 0) & (place < 2**31)
        codes = score_table.map_text(raw[chromosome_name], lambda text: chromosome_code(text.strip()), np.int8)
        chromosome[known] = codes[known]
        position[known] = place[known]
    rsid = score_table.rsids(raw["rsid"]) if "rsid" in raw else np.zeros(len(line), dtype=np.int64)
    if use_harmonised and "hm_rsid" in raw:
        harmonised = score_table.rsids(raw["hm_rsid"])
        rsid = np.where(harmonised > 0, harmonised, rsid)
    good = np.isfinite(weight) & (effect >= 0) & (other > -2)
    malformed = sorted([*odd, *line[~good].tolist()])
    counts = {"rows": len(line) + len(odd), "malformed": len(malformed)}
    counts["no_place"] = int(((position == 0) & (rsid == 0) & good).sum())
    parts = (line, chromosome, position, rsid), (effect, other, weight)
    if not good.all():
        parts = tuple(part[good] for part in parts[0]), tuple(part[good] for part in parts[1])
    alleles = [text for text, code in vocabulary.items() if code >= 0]
    return Score(name, path, *parts[0], alleles, *parts[1], counts, malformed)
