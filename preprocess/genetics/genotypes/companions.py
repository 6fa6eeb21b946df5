"""The companion files of a genotype file: by equal names, by UK Biobank's names, or stated with ``--sample``.

UK Biobank's names: ``ukb22828_c1_b0_v3.bgen`` with ``ukb22828_c1_b0_v3_s487202.sample`` (the number of samples at the
end); ``ukb22418_c1_b0_v2.bed`` with ``ukb_snp_chr1_v2.bim``. One table of samples may belong to the files of all
chromosomes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mrmfast.errors import UserError
from preprocess.genetics.text import read_lines, split_fields

SAMPLE_TABLES = {".bed": ".fam", ".pgen": ".psam", ".bgen": ".sample"}
COUNT_AT_END = re.compile(r"_s\d+$")
CHROMOSOME = re.compile(r"(?<![A-Za-z0-9])(?:chr|c)(\d{1,2}|XY|X|Y|MT)(?![A-Za-z0-9])", re.IGNORECASE)
OXFORD_TYPES = set("0CDPB")  # second line of a .sample: kinds of columns


def variants_beside(path: Path, suffix: str) -> Path:
    """Return the table of variants of a genotype file: the file of equal name, or UK Biobank's .bim."""
    exact = path.with_suffix(suffix)
    chromosome = CHROMOSOME.search(path.stem)
    if exact.exists() or chromosome is None:
        return exact
    pattern = re.compile(rf"ukb_snp_chr{chromosome[1]}_v\d+{re.escape(suffix)}")
    named = [file for file in path.parent.iterdir() if pattern.fullmatch(file.name)]
    return named[0] if len(named) == 1 else exact


def samples_beside(path: Path) -> Path:
    """Return the table of samples of a genotype file; it may not exist.

    Names are compared without the number of samples at their end. If no name agrees, a table of another chromosome of
    the same files is used: all of them hold the same samples.

    Raises
    ------
    UserError
        Several tables agree equally well.
    """
    suffix = SAMPLE_TABLES[path.suffix]
    exact = path.with_suffix(suffix)
    if exact.exists() or not path.parent.is_dir():
        return exact
    files = [file for file in path.parent.iterdir() if file.suffix == suffix and not file.name.startswith(".")]
    keys: list[Callable[[str], str]] = [_without_count, lambda stem: CHROMOSOME.sub("*", _without_count(stem))]
    for key in keys:
        named = sorted(file for file in files if key(file.stem) == key(path.stem))
        if len(named) > 1:
            raise UserError(
                f"{path}: {named[0].name} and {named[1].name} may name its samples; state the file with --sample"
            )
        if named:
            return named[0]
    return exact


def other_tables(paths: list[Path]) -> list[str]:
    """Return the names of the tables of samples whose name differs from that of their genotypes."""
    files = [path for path in paths if path.suffix in SAMPLE_TABLES]
    tables = {table for path in files if (table := samples_beside(path)).stem != path.stem and table.exists()}
    return sorted(table.name for table in tables)


def _without_count(stem: str) -> str:
    return COUNT_AT_END.sub("", stem)


def read_samples(path: Path) -> list[str]:
    """Return the id of every sample of a .fam, .psam or .sample, by the suffix of the file.

    Raises
    ------
    UserError
        The file is absent or malformed.
    """
    readers = {".fam": read_fam, ".psam": read_psam, ".sample": read_sample}
    if path.suffix not in readers:
        raise UserError(f"--sample {path}: is no table of samples; give one of {', '.join(readers)}")
    return readers[path.suffix](path)


def read_fam(path: Path) -> list[str]:
    """Return the IID (column 2) of every line; tab-separated files may leave it blank.

    Raises
    ------
    UserError
        The file is absent or empty, or a line has not 6 columns.
    """
    ids = []
    for number, line in read_lines(path, _absent(path)):
        fields = split_fields(line, 6)
        if len(fields) != 6:
            raise UserError(
                f"{path}: line {number} has {len(fields)} columns, a .fam has 6 "
                "(FID IID father mother sex phenotype); correct the line"
            )
        ids.append(fields[1])
    if not ids:
        raise UserError(f"{path}: is empty; a .fam has one line per sample")
    return ids


def read_psam(path: Path) -> list[str]:
    """Return the IID of every sample; a file without a header has the columns of a .fam.

    Raises
    ------
    UserError
        The file is absent or empty, or a line lacks columns.
    """
    lines = [(number, line) for number, line in read_lines(path, _absent(path)) if not line.startswith("##")]
    header = ["#FID", "IID", "FATHER", "MOTHER", "SEX", "PHENOTYPE"]
    named = 0
    if lines and lines[0][1].startswith("#"):
        named, header = lines[0][0], lines[0][1].split()
        del lines[0]
    if "IID" not in (names := [name.lstrip("#") for name in header]):
        raise UserError(f"{path}: line {named} names no column IID; the header of a .psam begins with #IID or #FID IID")
    column, ids = names.index("IID"), []
    for number, line in lines:
        fields = split_fields(line, len(header))
        if len(fields) != len(header):
            raise UserError(
                f"{path}: line {number} has {len(fields)} columns, {len(header)} are named; correct the line"
            )
        ids.append(fields[column])
    if not ids:
        raise UserError(f"{path}: names no samples; a .psam has one line per sample")
    return ids


def read_sample(path: Path) -> list[str]:
    """Return the id of every sample of an Oxford .sample file (two header lines).

    The first line begins with ``ID_1 ID_2`` (the second column counts, as in UK Biobank's files) or with ``ID``, as
    QCTOOL writes it.

    Raises
    ------
    UserError
        The header is not that of a .sample, or a line lacks columns.
    """
    lines = read_lines(path, _absent(path))
    header = lines[0][1].split() if lines else []
    names = [name.upper() for name in header]
    column = 1 if names[:2] == ["ID_1", "ID_2"] else 0
    types = lines[1][1].split() if len(lines) > 1 else []
    known = all(kind.upper() in OXFORD_TYPES for kind in types)
    if (column == 0 and names[:1] not in (["ID"], ["ID_1"])) or len(types) != len(header) or not known:
        raise UserError(
            f"{path}: lines 1 and 2 are not those of a .sample (ID_1 ID_2 missing ... or ID missing ..., then "
            "0 0 0 ...); correct them"
        )
    ids = []
    for number, line in lines[2:]:
        fields = split_fields(line, len(header))
        if len(fields) != len(header):
            raise UserError(
                f"{path}: line {number} has {len(fields)} columns, {len(header)} are named; correct the line"
            )
        ids.append(fields[column])
    return ids


def _absent(path: Path) -> str:
    return f"keep the {path.suffix} beside its genotypes, or state it with --sample"
