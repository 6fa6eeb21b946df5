"""The table of variants of a genotype file: chromosome codes, alleles, FILTER."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mrmfast.errors import UserError

AUTOSOMES = {str(number): number for number in range(1, 23)}
X_CHROMOSOME = 23
X_LABELS = {"X", "23", "XY", "25", "PAR1", "PAR2"}  # PLINK's codes; X in the PGS Catalog
LAST_POSITION = 2**31 - 1
POSITION = re.compile(r"\+?[0-9]{1,10}")
# No sample has the allele, and its name is not known: 0 in a .bim of PLINK 1, . in a .pvar or VCF.
NO_ALLELES = (".", "0")
SYMBOLS = set("*<>[]")


def autosome(label: str) -> int:
    """Return 1..22 for an autosome's label, with or without ``chr``; 0 for any other chromosome.

    See docs/genetics-pitfalls.md#chromosome-codes.
    """
    return AUTOSOMES.get(_bare(label).lstrip("0"), 0)


def chromosome_code(label: str) -> int:
    """Return 1..22 for an autosome, 23 for X and its pseudo-autosomal ends, 0 for any other chromosome.

    See docs/genetics-pitfalls.md#chromosome-codes.
    """
    bare = _bare(label)
    return X_CHROMOSOME if bare.upper() in X_LABELS else autosome(bare)


def _bare(label: str) -> str:
    """Return a label without ``chr``, and without the ``.0`` that pandas adds to a column with blank cells."""
    return (label[3:] if label[:3].lower() == "chr" else label).removesuffix(".0")


def natural_key(path: Path) -> list[int | str]:
    """Return a sort key that orders chr2 before chr10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def variant_table(
    path: Path, columns: tuple[list[str], ...], lines: Sequence[int], filters: list[str] | None = None
) -> pd.DataFrame:
    """Build :attr:`.base.GenotypeFile.variants` from columns of text.

    Parameters
    ----------
    path : Path
        For messages.
    columns : (chromosome, id, position, ref, alt)
    lines : sequence of int
        Line number of every variant.
    filters : list of str, optional
        FILTER of every variant.

    Raises
    ------
    UserError
        A position is not an integer of at least 0.
    """
    chromosome, ids, position, ref, alt = columns
    wrong = next((n for n, text in enumerate(position) if not POSITION.fullmatch(text)), None)
    positions = None if wrong is not None else np.array(position).astype(np.int64)
    if positions is not None and (beyond := np.flatnonzero(positions > LAST_POSITION)).size:
        wrong = int(beyond[0])
    if wrong is not None:
        raise UserError(
            f"{path}: line {lines[wrong]}: the position is not an integer from 0 to {LAST_POSITION}; correct the line"
        )
    table = {
        "chromosome": pd.Categorical(chromosome),
        "id": pd.Series(ids, dtype=object),
        "position": positions,
        "ref": pd.Categorical(ref),
        "alt": pd.Categorical(alt),
    }
    if filters is not None:
        table["filter"] = pd.Categorical(filters)
    return _coded(pd.DataFrame(table))


def variant_table_of_columns(table: pd.DataFrame) -> pd.DataFrame | None:
    """Build the same table from columns parsed by pandas; None if a row needs the message of :func:`variant_table`.

    Parameters
    ----------
    table : DataFrame
        ``chromosome``, ``ref``, ``alt`` (categories of str), ``id`` (str), ``position`` (int64), perhaps ``filter``
        (categories of str).
    """
    if not len(table) or table["position"].min() < 0 or table["position"].max() > LAST_POSITION:
        return None
    return _coded(table)


def _coded(table: pd.DataFrame) -> pd.DataFrame:
    """Code chromosomes and alleles once per distinct text."""
    category = {name: table[name].cat for name in ("chromosome", "ref", "alt")}
    codes = np.array([chromosome_code(str(label)) for label in category["chromosome"].categories], dtype=np.int8)
    alleles = {name: [str(text).upper() for text in category[name].categories] for name in ("ref", "alt")}
    counts = np.array([2 + allele.count(",") for allele in alleles["alt"]], dtype=np.int64)
    passes = np.ones(len(table), dtype=bool)
    if "filter" in table:
        kept = np.array([passes_filter(str(text)) for text in table["filter"].cat.categories], dtype=bool)
        passes = kept[table["filter"].cat.codes]
    return pd.DataFrame(
        {
            "chromosome": codes[category["chromosome"].codes],
            "id": table["id"].to_numpy(object),
            "position": table["position"].to_numpy(),
            "ref": np.array(alleles["ref"], dtype=object)[category["ref"].codes],
            "alt": np.array(alleles["alt"], dtype=object)[category["alt"].codes],
            "alleles": np.minimum(counts, 2**15 - 1).astype(np.int16)[category["alt"].codes],
            "passes": passes,
        }
    )


def passes_filter(text: str) -> bool:
    """Whether FILTER says that a variant passed, or that no filter was applied (``.``)."""
    return text.upper() in ("PASS", ".", "")


def is_sequence(allele: str) -> bool:
    """Whether an allele is a sequence of bases: neither ``*``, ``<DEL>`` and other symbols, nor a breakend."""
    return not set(allele) & SYMBOLS and (allele in NO_ALLELES or "." not in allele)
